//! Replaces `${NAME}` in string values by the environment variable NAME; `$${` stands for `${`.

use serde_yaml::Value;

/// Why a string that contains `${` cannot be expanded.
#[derive(Debug)]
pub(super) enum CannotExpand {
    /// A closing brace is missing.
    Unclosed,
    /// The variable is not set; the whole string and the name of the variable.
    Unset(String, String),
}

impl CannotExpand {
    /// Returns the error text without the string, which may be a secret. The name of the variable is shown only if the
    /// string is `${NAME}` with nothing around it, and NAME consists of upper-case letters, digits and underscores.
    pub(super) fn without_value(&self) -> String {
        let is_upper = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        match self {
            Self::Unset(text, name) if name.bytes().all(is_upper) && text.len() == name.len() + "${}".len() => {
                format!("environment variable {name} is not set")
            }
            Self::Unset(..) => "refers to an environment variable that is not set ($${ stands for ${)".to_owned(),
            Self::Unclosed => "has ${ without a closing brace ($${ stands for ${)".to_owned(),
        }
    }
}

/// Expands all strings of a value in place. An error has the key of the string, with the keys of its parents.
pub(super) fn expand(value: &mut Value) -> Result<(), (String, CannotExpand)> {
    match value {
        Value::String(text) if text.contains("${") => {
            *text = expand_text(text).map_err(|wrong| (String::new(), wrong))?;
        }
        Value::Sequence(items) => items.iter_mut().try_for_each(expand)?,
        Value::Mapping(map) => {
            for (name, inner) in map {
                let name = name.as_str().unwrap_or("?");
                expand(inner).map_err(|(key, wrong)| match key.as_str() {
                    "" => (name.to_owned(), wrong),
                    inner => (format!("{name}.{inner}"), wrong),
                })?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand_text(text: &str) -> Result<String, CannotExpand> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if let Some(literal) = rest[..start].strip_suffix('$') {
            expanded.push_str(literal);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let (name, after) = rest[start + 2..].split_once('}').ok_or(CannotExpand::Unclosed)?;
        let value = std::env::var(name).map_err(|_| CannotExpand::Unset(text.to_owned(), name.to_owned()))?;
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_expanded_and_can_be_escaped() {
        let home = std::env::var("PATH").unwrap();
        for (text, expanded) in
            [("a ${PATH} b", format!("a {home} b")), ("$${PATH}", "${PATH}".into()), ("$5 {#KEY}", "$5 {#KEY}".into())]
        {
            assert_eq!(expand_text(text).unwrap(), expanded);
        }
        let unset = expand_text("${SURELY_NOT_SET_ANYWHERE}").unwrap_err();
        assert!(unset.without_value().contains("SURELY_NOT_SET_ANYWHERE"));
        assert!(expand_text("${PATH").is_err());
        let mut value: Value = serde_yaml::from_str("kafka:\n  sasl.password: 'secret${PATH'").unwrap();
        let (key, wrong) = expand(&mut value).unwrap_err();
        assert_eq!(key, "kafka.sasl.password");
        assert!(!wrong.without_value().contains("secret"));
    }
}
