//! What is read as a duration, a size or a rate is the same again when it is printed.
#![no_main]

use headworks::config::{read_duration, read_rate, read_size, show_duration, show_rate, show_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(duration) = read_duration(text) {
        assert_eq!(read_duration(&show_duration(duration)), Ok(duration));
    }
    if let Ok(size) = read_size(text) {
        assert_eq!(read_size(&show_size(size)), Ok(size));
    }
    if let Ok((amount, period)) = read_rate(text) {
        assert_eq!(read_rate(&show_rate(amount, period)), Ok((amount, period)));
    }
});
