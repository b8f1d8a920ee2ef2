//! Everything that is wrong with a configuration, shown in its place, all at once.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::suggest::nearest;

/// Bytes of the text.
pub(super) type Span = Range<usize>;

/// A file that is wrong from end to end is no configuration file; the first of its errors say so.
const SHOWN: usize = 50;

/// What is wrong, and perhaps what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    message: String,
    hint: Option<String>,
}

impl Problem {
    /// A problem that speaks for itself, unless a hint is added.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the known word that was probably meant.
    #[must_use]
    pub(super) fn did_you_mean<'a>(self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match nearest(word, known) {
            Some(near) => self.hint(format!("did you mean {}?", quote(near))),
            None => self,
        }
    }

    /// Adds a hint where there is none yet.
    #[must_use]
    pub(super) fn or_hint(self, hint: impl FnOnce() -> Option<String>) -> Self {
        Self { hint: self.hint.or_else(hint), ..self }
    }
}

impl<T: Into<String>> From<T> for Problem {
    fn from(message: T) -> Self {
        Self::new(message)
    }
}

/// A problem in its place; without a span it is about the file as a whole.
#[derive(Clone, Debug)]
struct Diagnostic {
    span: Option<Span>,
    problem: Problem,
}

/// Collects what is wrong, so that the work can go on and find the rest.
#[derive(Debug, Default)]
pub(super) struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Adds an error at a place.
    pub(super) fn error(&mut self, span: &Span, problem: impl Into<Problem>) {
        self.0.push(Diagnostic { span: Some(span.clone()), problem: problem.into() });
    }

    /// Adds a hint to the error that was found last, unless it has one.
    pub(super) fn hint_last(&mut self, hint: impl FnOnce() -> String) {
        if let Some(Diagnostic { problem, .. }) = self.0.last_mut() {
            problem.hint.get_or_insert_with(hint);
        }
    }

    /// Adds an error about the file as a whole.
    pub(super) fn whole(&mut self, problem: impl Into<Problem>) {
        self.0.push(Diagnostic { span: None, problem: problem.into() });
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The error that tells it all; none when nothing is wrong.
    pub(super) fn into_error(mut self, name: &str, text: &str) -> Option<Error> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or((0, 0), |span| (span.start, span.end)));
        Some(Error { files: Vec::new(), name: name.into(), text: text.into(), diagnostics: self.0 })
    }
}

/// Why a configuration was refused: the full report, with each error in its place.
///
/// It prints plain; [`Error::render`] can colour it for a terminal.
#[derive(Clone)]
pub struct Error {
    files: Vec<PathBuf>,
    name: Box<str>,
    text: Box<str>,
    diagnostics: Vec<Diagnostic>,
}

impl Error {
    /// An error about a file that could not be looked into.
    pub(super) fn unreadable(name: &str, message: String) -> Self {
        Self {
            files: Vec::new(),
            name: name.into(),
            text: "".into(),
            diagnostics: vec![Diagnostic { span: None, problem: message.into() }],
        }
    }

    pub(super) fn with_files(mut self, files: Vec<PathBuf>) -> Self {
        self.files = files;
        self
    }

    /// The files that the configuration names, as far as it was understood.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// How many things are wrong. Never 0.
    #[must_use]
    pub fn count(&self) -> usize {
        self.diagnostics.len()
    }

    /// The report, with colours for a terminal or without. Ends with a newline.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let shown = self.diagnostics.iter().take(SHOWN);
        let mut parts: Vec<String> =
            shown.map(|diagnostic| renderer.render(&[self.group(diagnostic)]) + "\n").collect();
        match self.diagnostics.len() {
            0 | 1 => {}
            all @ 2..=SHOWN => parts.push(format!("{}: {all} errors\n", self.name)),
            all => parts.push(format!("{}: {all} errors, of which the first {SHOWN} are shown\n", self.name)),
        }
        parts.join("\n")
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let title = Level::ERROR.primary_title(diagnostic.problem.message.as_str());
        let group = match &diagnostic.span {
            Some(span) => title.element(
                Snippet::source(&*self.text)
                    .path(&*self.name)
                    .annotation(AnnotationKind::Primary.span(self.visible(span))),
            ),
            None => title.element(Origin::path(&*self.name)),
        };
        group.elements(diagnostic.problem.hint.as_deref().map(|hint| Level::HELP.message(hint)))
    }

    /// The part of a span on its first line: what follows is the rest of a table or of a long text.
    fn visible(&self, span: &Span) -> Span {
        let line = self.text.get(span.clone()).and_then(|text| text.lines().next());
        let end = line.map_or(span.end, |line| span.start + line.len());
        if self.text.get(span.start..end).is_some() { span.start..end } else { 0..0 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// `FILE:LINE:COLUMN: message`, for what is no error.
pub(super) fn remark(name: &str, text: &str, span: &Span, message: &str) -> String {
    let before = text.get(..span.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{name}:{line}:{column}: {message}")
}

/// A word of the file within a message: between backticks, escaped and cut to a bearable length.
pub(super) fn quote(word: &str) -> String {
    let mut shown: String = word.chars().take(60).flat_map(char::escape_debug).collect();
    if word.chars().nth(60).is_some() {
        shown.push_str("...");
    }
    format!("`{}`", shown.replace("\\\"", "\"").replace("\\'", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_in_the_order_of_the_file() {
        let text = "a = 1\nb = \"ü\"\n";
        let mut found = Diagnostics::default();
        found.error(&(10..14), Problem::new("second").hint("write `u`"));
        found.error(&(0..1), "first");
        found.whole("the whole");
        insta::assert_snapshot!(found.into_error("x.toml", text).unwrap().render(false));
    }

    #[test]
    fn colours_are_for_terminals() {
        let mut found = Diagnostics::default();
        found.error(&(0..1), "wrong");
        let error = found.into_error("x.toml", "a = 1\n").unwrap();
        assert!(error.render(true).contains('\u{1b}'));
        assert!(!error.render(false).contains('\u{1b}'));
        assert_eq!(format!("{error:?}"), error.to_string());
    }

    #[test]
    fn many_errors_are_cut() {
        let mut found = Diagnostics::default();
        for place in 0..1000 {
            found.error(&(place..place + 1), "wrong");
        }
        let report = found.into_error("x.toml", &"x".repeat(1000)).unwrap().to_string();
        assert_eq!(report.matches("error: wrong").count(), SHOWN);
        assert!(report.ends_with("x.toml: 1000 errors, of which the first 50 are shown"));
    }

    #[test]
    fn places_and_words() {
        assert_eq!(remark("x.toml", "a = 1\n  b = 2", &(8..9), "so"), "x.toml:2:3: so");
        assert_eq!(quote("a\u{1b}b\"c"), "`a\\u{1b}b\"c`");
        assert!(quote(&"x".repeat(100)).ends_with("...`"));
    }
}
