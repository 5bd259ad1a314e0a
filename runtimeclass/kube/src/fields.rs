//! Walking a document: readers take out the fields they understand, and every remaining field is reported.
//!
//! So nothing is ignored by oversight: a field that no reader takes is a fault with its path and value.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::node::{Node, Scope};

impl<'a> Node<'a> {
    /// This value as an object.
    pub(crate) fn fields(self) -> Option<Fields<'a>> {
        match self.value {
            Value::Object(map) => Some(Fields { scope: self.scope, path: self.path, map }),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => {
                self.wrong("a mapping");
                None
            }
        }
    }
}

/// An object whose fields are taken out one by one.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    scope: &'a Scope<'a>,
    path: String,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object's path in the document.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path of one of its fields.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Records a fault of one of its fields.
    pub(crate) fn fault(&self, key: &str, text: impl Into<String>) {
        self.scope.findings.fault(&self.scope.document, &self.path_of(key), text);
    }

    /// Records a fault of the object as a whole.
    pub(crate) fn fault_here(&self, text: impl Into<String>) {
        self.scope.findings.fault(&self.scope.document, &self.path, text);
    }

    /// Records a note about one of its fields.
    pub(crate) fn note(&self, key: &str, text: impl Into<String>) {
        self.scope.findings.note(&self.scope.document, &self.path_of(key), text);
    }

    /// The fields that were not taken yet.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// Whether a field is set to anything but an empty value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(is_set)
    }

    /// Takes a field; `null` counts as absent, as in Kubernetes.
    pub(crate) fn take(&mut self, key: &str) -> Option<Node<'a>> {
        let path = self.path_of(key);
        let value = self.map.remove(key).filter(|value| !value.is_null())?;
        Some(Node { scope: self.scope, path, value })
    }

    /// Takes an object.
    pub(crate) fn fields(&mut self, key: &str) -> Option<Fields<'a>> {
        self.take(key)?.fields()
    }

    /// Takes a list of any values; empty when absent.
    pub(crate) fn list(&mut self, key: &str) -> Vec<Node<'a>> {
        self.take(key).map(Node::list).unwrap_or_default()
    }

    /// Takes a list of objects; empty when absent.
    pub(crate) fn objects(&mut self, key: &str) -> Vec<Fields<'a>> {
        self.list(key).into_iter().filter_map(Node::fields).collect()
    }

    /// Takes text; the empty text counts as absent, as in Kubernetes.
    pub(crate) fn string(&mut self, key: &str) -> Option<String> {
        self.take(key)?.string().filter(|text| !text.is_empty())
    }

    /// Takes text that is required; reports a fault and returns the empty text when it is missing.
    pub(crate) fn required(&mut self, key: &str) -> String {
        let present = self.map.get(key).is_some_and(|value| !value.is_null());
        let text = self.string(key);
        if text.is_none() && (!present || !self.has_fault(key)) {
            self.fault(key, "is required");
        }
        text.unwrap_or_default()
    }

    fn has_fault(&self, key: &str) -> bool {
        self.scope.findings.has_fault_at(&self.scope.document, &self.path_of(key))
    }

    /// Takes text that must pass a check; the check's error becomes the fault.
    pub(crate) fn checked<E: fmt::Display>(
        &mut self,
        key: &str,
        check: impl Fn(&str) -> Result<(), E>,
    ) -> Option<String> {
        let text = self.string(key)?;
        if let Err(error) = check(&text) {
            self.fault(key, error.to_string());
        }
        Some(text)
    }

    /// Takes text that must be one of `words`.
    pub(crate) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|&(_, value)| value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
            self.fault(
                key,
                format!("{text:?} is not supported; it must be one of {}", known.join(", ")),
            );
        }
        found
    }

    /// Takes a boolean.
    pub(crate) fn boolean(&mut self, key: &str) -> Option<bool> {
        self.take(key)?.boolean()
    }

    /// Takes a whole number.
    pub(crate) fn integer(&mut self, key: &str) -> Option<i64> {
        self.take(key)?.integer()
    }

    /// Takes a whole number that must lie in a range.
    pub(crate) fn integer_in(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let value = self.integer(key)?;
        if !range.contains(&value) {
            self.fault(
                key,
                format!("{value} must be between {} and {}", range.start(), range.end()),
            );
            return None;
        }
        Some(value)
    }

    /// Takes a file mode.
    pub(crate) fn mode(&mut self, key: &str) -> Option<u32> {
        self.take(key)?.mode()
    }

    /// Takes a list of texts.
    pub(crate) fn strings(&mut self, key: &str) -> Vec<String> {
        self.list(key).iter().filter_map(Node::string).collect()
    }

    /// Takes a mapping of texts.
    pub(crate) fn string_map(&mut self, key: &str) -> BTreeMap<String, String> {
        let Some(mut fields) = self.fields(key) else { return BTreeMap::new() };
        let mut texts = BTreeMap::new();
        for name in fields.keys() {
            if let Some(text) = fields.take(&name).and_then(|node| node.string()) {
                texts.insert(name, text);
            }
        }
        texts
    }

    /// Drops fields that only a cluster reads; one note names those that are set.
    pub(crate) fn drop_cluster_only(&mut self, keys: &[&str]) {
        let mut dropped = Vec::new();
        for key in keys {
            if self.map.remove(*key).is_some_and(|value| is_set(&value)) {
                dropped.push(self.path_of(key));
            }
        }
        if !dropped.is_empty() {
            let text = format!("not used without a cluster: {}", dropped.join(", "));
            self.scope.findings.note(&self.scope.document, "", text);
        }
    }

    /// Drops fields that have no effect here.
    pub(crate) fn drop_silent(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Reports a known field that is not supported, if it is set.
    pub(crate) fn refuse(&mut self, key: &str, reason: &str) {
        let Some(value) = self.map.remove(key).filter(is_set) else { return };
        if self.scope.findings.ignores(key) {
            return self.note(key, format!("left out, as --ignore asks: {reason}"));
        }
        let shown = self.scope.shown(&value);
        self.fault(key, format!("{reason}; remove it or pass --ignore {key} (value: {shown})"));
    }

    /// Reports the remaining fields: those of `unsupported` with their reason, all others as unknown.
    pub(crate) fn finish_refusing(mut self, unsupported: &[(&str, &str)]) {
        for (key, reason) in unsupported {
            self.refuse(key, reason);
        }
        self.finish();
    }

    /// Reports every remaining field as unknown.
    pub(crate) fn finish(self) {
        for (key, value) in self.map.iter().filter(|(_, value)| is_set(value)) {
            if self.scope.findings.ignores(key) {
                self.note(key, "left out, as --ignore asks");
                continue;
            }
            let shown = self.scope.shown(value);
            let text = "unknown field; check its spelling and indentation";
            self.fault(key, format!("{text}, or pass --ignore {key} (value: {shown})"));
        }
    }
}

/// Whether a value is more than empty: Kubernetes treats empty lists and mappings as absent.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
