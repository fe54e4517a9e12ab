//! The answer of a daemon to `GET /metrics`, parsed.

use super::http;

pub(crate) struct Metrics(String);

impl Metrics {
    /// Requests `/metrics` of the daemon at `host:port`; panics if the daemon does not answer with 200.
    #[track_caller]
    pub(crate) fn scrape(address: &str) -> Metrics {
        let answer = http::get(&format!("http://{address}/metrics")).expect("a running daemon answers /metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(answer.text())
    }

    pub(crate) fn parse(text: String) -> Metrics {
        Metrics(text)
    }

    /// Returns whether the answer has exactly this line.
    pub(crate) fn has(&self, line: &str) -> bool {
        self.0.lines().any(|sample| sample == line)
    }

    /// Returns the value of a metric with its labels, `name{label="x"}`; `None` if the answer has no such metric, which
    /// is so until the daemon has counted something. Panics if the value is not a whole number.
    pub(crate) fn value(&self, metric: &str) -> Option<u64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '))?;
        Some(value.parse().unwrap_or_else(|_| panic!("{metric} is {value:?}, not a whole number")))
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}
