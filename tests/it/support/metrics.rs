//! The Prometheus text format, as far as a test needs it.

/// One scrape.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    text: String,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { text: text.to_owned(), samples: lines.map(Sample::parse).collect() }
    }

    /// The sum over all samples of `name` that carry at least these labels; 0 when there is none.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples.iter().filter(|sample| sample.name == name && sample.carries(labels)).map(|s| s.value).sum()
    }

    /// Names of the metrics as declared by `# TYPE`, with their types.
    pub(crate) fn types(&self) -> Vec<(String, String)> {
        let declared = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        declared.filter_map(|rest| rest.split_once(' ')).map(|(name, kind)| (name.into(), kind.into())).collect()
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
        let value = value.parse().unwrap_or_else(|_| panic!("no number in {line:?}"));
        let Some((name, rest)) = series.split_once('{') else {
            return Self { name: series.to_owned(), labels: Vec::new(), value };
        };
        let mut rest = rest.strip_suffix('}').unwrap_or_else(|| panic!("open braces in {line:?}"));
        let mut labels = Vec::new();
        while let Some((key, tail)) = rest.split_once("=\"") {
            let (text, tail) = quoted(tail);
            labels.push((key.trim_start_matches(',').trim().to_owned(), text));
            rest = tail;
        }
        Self { name: name.to_owned(), labels, value }
    }

    fn carries(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(key, value)| self.labels.iter().any(|(k, v)| k == key && v == value))
    }
}

/// Reads up to the closing quote; gives the text without escapes, and the rest.
fn quoted(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &text[at + 1..]),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, other)) => out.push(other),
                None => break,
            },
            other => out.push(other),
        }
    }
    panic!("open quote in {text:?}")
}

#[test]
fn samples_are_read_with_their_labels() {
    let metrics = Metrics::parse(concat!(
        "# HELP a_total Things.\n# TYPE a_total counter\n",
        "a_total{kind=\"x\",path=\"a \\\"b\\\" c\"} 3\na_total{kind=\"y\"} 4.5\nplain 1e3\n"
    ));
    assert_eq!(metrics.get("a_total", &[]).to_bits(), 7.5_f64.to_bits());
    assert_eq!(metrics.get("a_total", &[("path", "a \"b\" c")]).to_bits(), 3.0_f64.to_bits());
    assert_eq!(metrics.get("plain", &[]).to_bits(), 1000.0_f64.to_bits());
    assert_eq!(metrics.types(), [("a_total".to_owned(), "counter".to_owned())]);
}
