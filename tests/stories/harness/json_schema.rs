//! Validates JSON against the keywords of JSON Schema that `conf/schema/delay-v1.json` uses. A keyword that is not
//! known here fails, so that no rule of the schema is silently ignored.

use serde_json::{Map, Value};

/// Fails with every place where `value` breaks the schema.
pub(crate) fn assert_valid(schema: &str, value: &Value) {
    let schema: Value = serde_json::from_str(schema).expect("the schema is JSON");
    let mut faults = Vec::new();
    Validator { root: &schema, faults: &mut faults }.check(&schema, value, "$");
    assert!(faults.is_empty(), "{}\n{value:#}", faults.join("\n"));
}

struct Validator<'a> {
    root: &'a Value,
    faults: &'a mut Vec<String>,
}

impl Validator<'_> {
    fn check(&mut self, schema: &Value, value: &Value, at: &str) {
        for (keyword, rule) in schema.as_object().expect("a schema is a map") {
            match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" => {}
                "$ref" => self.check(&self.referenced(rule), value, at),
                "type" => {
                    let names = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                    let has_type = names.iter().any(|name| is_of_type(value, name.as_str().expect("a type is a word")));
                    self.require(has_type, at, format!("is {value}, but must be {rule}"));
                }
                "const" => self.require(value == rule, at, format!("is {value}, but must be {rule}")),
                "enum" => {
                    let is_one = rule.as_array().expect("a list").contains(value);
                    self.require(is_one, at, format!("is {value}, but must be one of {rule}"));
                }
                "minimum" => {
                    let is_enough = value.as_f64().is_none_or(|number| rule.as_f64().expect("a number") <= number);
                    self.require(is_enough, at, format!("is {value}, but must be at least {rule}"));
                }
                "format" => {
                    assert_eq!(rule, "date-time", "an unknown format");
                    self.require(value.as_str().is_none_or(is_time), at, format!("is {value}, which is no time"));
                }
                "required" => {
                    let Some(map) = value.as_object() else { continue };
                    for name in rule.as_array().expect("a list").iter().filter_map(Value::as_str) {
                        self.require(map.contains_key(name), at, format!("has no {name}"));
                    }
                }
                "properties" => self.properties(rule.as_object().expect("a map"), value, at),
                "additionalProperties" => {
                    assert_eq!(rule, false, "additionalProperties may only be false");
                    let known = schema["properties"].as_object().expect("a map");
                    for name in value.as_object().into_iter().flatten().map(|(name, _)| name) {
                        self.require(known.contains_key(name), at, format!("has the unknown field {name}"));
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{at}[{index}]"));
                    }
                }
                "minItems" | "maxItems" => {
                    let Some(items) = value.as_array() else { continue };
                    let (count, limit) = (items.len() as u64, rule.as_u64().expect("a number"));
                    let is_within = if keyword == "minItems" { limit <= count } else { count <= limit };
                    self.require(is_within, at, format!("has {count} items, but {keyword} is {limit}"));
                }
                unknown => panic!("the keyword {unknown} is not known to this validator"),
            }
        }
    }

    fn properties(&mut self, rules: &Map<String, Value>, value: &Value, at: &str) {
        for (name, rule) in rules {
            if let Some(field) = value.get(name) {
                self.check(rule, field, &format!("{at}.{name}"));
            }
        }
    }

    fn referenced(&self, reference: &Value) -> Value {
        let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference into this file");
        self.root.pointer(pointer).unwrap_or_else(|| panic!("{reference} does not exist")).clone()
    }

    fn require(&mut self, holds: bool, at: &str, fault: String) {
        if !holds {
            self.faults.push(format!("{at} {fault}"));
        }
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("the type {name} is not known to this validator"),
    }
}

/// Returns whether the text is a time in UTC such as `2026-11-25T18:01:35Z`.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
    shape == "0000-00-00T00:00:00Z"
}
