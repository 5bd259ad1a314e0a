//! One value of a document, read as the type that its field has.

use serde_json::Value;

use crate::findings::Findings;
use crate::quantity::Quantity;

/// The document that is being read.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) document: String,
    pub(crate) findings: &'a Findings,
    /// Whether values of this document may be shown in messages: a Secret's may not.
    pub(crate) shown: bool,
}

impl Scope<'_> {
    /// A value for a message: shortened, and hidden where it may be secret.
    pub(crate) fn shown(&self, value: &Value) -> String {
        if !self.shown {
            return "a value not shown".to_owned();
        }
        let text = value.to_string();
        match text.char_indices().nth(60) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }
}

/// A value and its path in the document.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) scope: &'a Scope<'a>,
    pub(crate) path: String,
    pub(crate) value: Value,
}

impl<'a> Node<'a> {
    /// The root of a document.
    pub(crate) fn root(scope: &'a Scope<'a>, value: Value) -> Self {
        Self { scope, path: String::new(), value }
    }

    /// Records a fault of this value.
    pub(crate) fn fault(&self, text: impl Into<String>) {
        self.scope.findings.fault(&self.scope.document, &self.path, text);
    }

    /// Records a fault: another kind of value was expected.
    pub(crate) fn wrong(&self, wanted: &str) {
        self.fault(format!("must be {wanted}, not {}", self.scope.shown(&self.value)));
    }

    /// This value as a list of values.
    pub(crate) fn list(self) -> Vec<Node<'a>> {
        let Value::Array(items) = self.value else {
            self.wrong("a list");
            return Vec::new();
        };
        let place =
            |(at, value)| Node { scope: self.scope, path: format!("{}[{at}]", self.path), value };
        items.into_iter().enumerate().map(place).collect()
    }

    /// This value as text.
    pub(crate) fn string(&self) -> Option<String> {
        if let Value::String(text) = &self.value {
            return Some(text.clone());
        }
        self.wrong("a string (put it in quotes)");
        None
    }

    /// This value as a boolean. YAML 1.1's `yes` and `no` are taken, as Kubernetes takes them.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match &self.value {
            Value::Bool(value) => return Some(*value),
            Value::String(text) => match text.as_str() {
                "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(true),
                "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(false),
                _ => {}
            },
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => {}
        }
        self.wrong("true or false");
        None
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        let integer = self.value.as_i64();
        if integer.is_none() {
            self.wrong("a whole number");
        }
        integer
    }

    /// A file mode: YAML 1.1's octal `0644` (text to a YAML 1.2 parser), or the plain number that Kubernetes stores.
    pub(crate) fn mode(&self) -> Option<u32> {
        let mode = match &self.value {
            Value::String(text) => {
                let octal = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
                octal.and_then(|octal| u32::from_str_radix(octal, 8).ok())
            }
            Value::Number(number) => number.as_u64().and_then(|mode| u32::try_from(mode).ok()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if mode.is_none_or(|mode| mode > 0o777) {
            self.wrong("a file mode between 0 and 0777");
            return None;
        }
        mode
    }

    /// This value as a quantity: `2`, `0.5` or `"64Mi"`.
    pub(crate) fn quantity(&self) -> Option<Quantity> {
        let text = match &self.value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                self.wrong("a quantity like 100m or 64Mi");
                return None;
            }
        };
        Quantity::parse(&text).map_err(|error| self.fault(error.to_string())).ok()
    }
}
