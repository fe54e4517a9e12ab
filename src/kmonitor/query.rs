//! The parameters of a query string such as `a=1&b=2`.

use std::collections::BTreeMap;

use crate::http::{Head, Response, percent_decode};

use super::refusals::bad_query;

/// Decoded parameters by name.
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Returns the parameters of a request, or the answer to one with a duplicate parameter or an invalid
    /// percent-encoding.
    pub(super) fn of(head: &Head) -> Result<Self, Response> {
        parse(head.query.as_deref().unwrap_or_default()).map(Parameters).map_err(|reason| bad_query(&reason))
    }

    /// Returns the value of a parameter; `None` if it is absent or empty.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Fails with the answer to a request that has a parameter other than these.
    pub(super) fn expect(&self, known: &[&str]) -> Result<(), Response> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(bad_query(&format!("unknown parameter {name:?}: there are {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    /// Returns what stands for the value of a parameter in `choices`; the first is the default.
    pub(super) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Response> {
        let Some(value) = self.value(name) else { return Ok(choices[0].1) };
        let words = || choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        let found = choices.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| bad_query(&format!("{name} is {value:?}, but must be {}", words())))
    }
}

fn parse(query: &str) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decoded(name)?;
        if parameters.insert(name.clone(), decoded(value)?).is_some() {
            return Err(format!("duplicate parameter {name:?}"));
        }
    }
    Ok(parameters)
}

/// Decodes a name or a value.
pub(super) fn decoded(text: &str) -> Result<String, String> {
    let bytes = percent_decode(text).ok_or_else(|| format!("invalid percent-encoding in {text:?}"))?;
    String::from_utf8(bytes.into_owned()).map_err(|_| format!("{text:?} does not decode to UTF-8"))
}
