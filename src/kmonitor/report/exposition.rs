//! Writes metrics in the Prometheus text format, version 0.0.4, straight into memory.
//!
//! A registry makes several objects for each series; at 100,000 series that takes half a second and 80 MB. This writer
//! appends to one buffer.

use std::fmt::{Display, Write};

/// The text under construction.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

/// Labels that are already written and escaped, for instance `cluster="c",module="m"`.
#[derive(Clone, Default)]
pub(super) struct Labels(String);

impl Labels {
    /// Returns the labels with one more.
    pub(super) fn with(&self, name: &str, value: &str) -> Labels {
        let mut labels = String::with_capacity(self.0.len() + name.len() + value.len() + 4);
        labels.push_str(&self.0);
        push_label(&mut labels, name, value);
        Labels(labels)
    }
}

impl Exposition {
    /// Begins a family of gauges: all series until the next call belong to it.
    pub(super) fn family(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        put(&mut self.text, format_args!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
        Family { text: &mut self.text, name }
    }

    /// Returns the text.
    pub(super) fn finish(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

/// The family that is being written.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// Writes one series.
    pub(super) fn series(&mut self, labels: &Labels, value: impl Display) {
        self.series_with(labels, &[], value);
    }

    /// Writes one series that has further labels.
    pub(super) fn series_with(&mut self, labels: &Labels, more: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push('{');
        self.text.push_str(&labels.0);
        if let Some(((name, value), rest)) = more.split_first() {
            // `push_label` sets a comma unless the text is empty, and here it never is.
            if !labels.0.is_empty() {
                self.text.push(',');
            }
            push_first_label(self.text, name, value);
            rest.iter().for_each(|(name, value)| push_label(self.text, name, value));
        }
        put(self.text, format_args!("}} {value}\n"));
    }
}

fn push_label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    push_first_label(text, name, value);
}

fn push_first_label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            // Prometheus takes it for the end of the text.
            '\0' => text.push('\u{fffd}'),
            other => text.push(other),
        }
    }
    text.push('"');
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing into memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_written_with_their_labels_escaped() {
        let mut page = Exposition::default();
        let mut family = page.family("a_level", "A level.");
        let cluster = Labels::default().with("cluster", "c");
        family.series(&cluster, 3);
        family.series(&cluster.with("module", "a\"b\\c\nd\0é\t"), 0.5);
        family.series_with(&cluster, &[("verdict", "OK"), ("x", "")], 1);
        family.series_with(&Labels::default(), &[("only", "1"), ("two", "2")], -1);
        page.family("other", "Empty.");
        let expected = "# HELP a_level A level.\n# TYPE a_level gauge\na_level{cluster=\"c\"} 3\n\
                        a_level{cluster=\"c\",module=\"a\\\"b\\\\c\\nd\u{fffd}é\t\"} 0.5\n\
                        a_level{cluster=\"c\",verdict=\"OK\",x=\"\"} 1\na_level{only=\"1\",two=\"2\"} -1\n\
                        # HELP other Empty.\n# TYPE other gauge\n";
        assert_eq!(String::from_utf8(page.finish()).unwrap(), expected);
    }
}
