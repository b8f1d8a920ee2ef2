//! Any text is a configuration or has faults that can be told.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Secrets may stand in files, and what is read here is the text alone.
    if text.contains("file") {
        return;
    }
    match headworks::config::parse(text, "fuzz.toml", Path::new("")) {
        Ok(config) => drop(headworks::explain::all(&config)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
