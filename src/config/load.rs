//! The ways to a [`Config`]: from a file, from a text, from one address.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::decode::{Context, Decode};
use super::error::{Error, Problem};
use super::file::Root;
use super::{Config, effective, resolve};

/// Larger files are no configuration.
const LONGEST: u64 = 16 << 20;

/// Reads a file. Relative paths in it start at its own folder.
pub fn load(path: &Path) -> Result<Config, Error> {
    load_with(path, false)
}

/// [`load`], and whether the files that it names are there.
pub fn load_and_look(path: &Path) -> Result<Config, Error> {
    load_with(path, true)
}

fn load_with(path: &Path, looks: bool) -> Result<Config, Error> {
    let name = path.display().to_string();
    let unreadable = |error: std::io::Error| Error::unreadable(&name, format!("cannot read the file: {error}"));
    if std::fs::metadata(path).map_err(unreadable)?.len() > LONGEST {
        return Err(Error::unreadable(&name, "the file is larger than 16MiB".into()));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let mut cx = Context::new(path.parent().unwrap_or(Path::new("")), &from_env);
    cx.looks = looks;
    parse_in(cx, &text, &name)
}

fn from_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads a text. `name` stands in the errors; relative paths start at `base_dir`.
pub fn parse(text: &str, name: &str, base_dir: &Path) -> Result<Config, Error> {
    parse_in(Context::new(base_dir, &from_env), text, name)
}

/// The configuration that `headworks --upstream URL` runs with: everything to one upstream.
pub fn from_upstream(url: &str, listen: SocketAddr) -> Result<Config, Error> {
    // A JSON string is a TOML string, but for DEL, which no address can have.
    let url = Value::from(url).to_string().replace('\u{7f}', "?");
    let text = format!("[upstream.default]\nendpoints = {url}\n[server]\nlisten = \"{listen}\"\n");
    parse(&text, "--upstream", Path::new(""))
}

/// [`parse`] with an environment of its own.
#[cfg(test)]
pub(super) fn parse_with(
    text: &str,
    name: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Error> {
    parse_in(Context::new(base_dir, env), text, name)
}

fn parse_in(mut cx: Context<'_>, text: &str, name: &str) -> Result<Config, Error> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let mut problem = Problem::new(error.message());
        if ["invalid float", "invalid integer", "invalid boolean", "invalid datetime"]
            .iter()
            .any(|start| error.message().starts_with(start))
        {
            problem = problem.hint("a text stands between quotes");
        }
        match error.span() {
            Some(span) => cx.found.error(&span, problem),
            None => cx.found.whole(problem),
        }
    }
    let mut config = None;
    // What a broken text was recovered to is a guess: errors found in it would be about the guess.
    if cx.found.is_empty() {
        let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
        config = Root::decode(&root, &mut cx).map(|file| {
            let mut config = resolve::config(file, name, text, &mut cx);
            config.effective = effective::of(&root, &config);
            config
        });
    }
    let files = cx.files;
    let text =
        if cx.private.is_empty() || cx.found.is_empty() { text.into() } else { effective::without(text, &cx.private) };
    match (config, cx.found.into_error(name, &text)) {
        (_, Some(error)) => Err(error.with_files(files)),
        (Some(config), None) => Ok(config),
        (None, None) => Err(Error::unreadable(name, "the file could not be understood".into())),
    }
}

/// The JSON Schema of the file, for editors.
#[must_use]
pub fn schema() -> Value {
    let mut schema = Root::schema();
    let source = json!({
        "description": "Stands for a string: the value of an environment variable, or the content of a file.",
        "type": "object",
        "properties": { "env": { "type": "string" }, "file": { "type": "string" } },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": false,
    });
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        schema.insert("title".into(), "headworks".into());
        schema.insert("$defs".into(), json!({ "source": source }));
    }
    schema
}

/// Every key of the file with its full path, as `server.timeout.header` or `upstream.NAME.queue.max`.
#[must_use]
pub fn keys() -> Vec<String> {
    let mut keys = Vec::new();
    Root::keys("", &mut keys);
    keys
}
