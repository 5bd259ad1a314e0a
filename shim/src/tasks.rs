//! The shim's tasks by id.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use sandbox_core::{Error, Id, Kind, Result};

use crate::task::Task;

/// The table. An id is taken from the moment its creation begins.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<HashMap<Id, Option<Arc<Task>>>>);

/// A reserved id. Dropped without a task, it is free again.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    tasks: &'a Tasks,
    id: Id,
    filled: bool,
}

impl Tasks {
    /// Takes an id.
    pub(crate) fn reserve(&self, id: &Id) -> Result<Slot<'_>> {
        match self.0.lock().entry(id.clone()) {
            Entry::Occupied(_) => Err(Error::new(
                Kind::AlreadyExists,
                format!("container {id} already exists: delete it first"),
            )),
            Entry::Vacant(place) => {
                place.insert(None);
                Ok(Slot { tasks: self, id: id.clone(), filled: false })
            }
        }
    }

    /// The task with this id. One that is still being created is not there yet.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Task>> {
        self.find(id)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no container {id:?} here")))
    }

    /// As [`Tasks::get`], for callers to whom absence is no error.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Task>> {
        let id = Id::new(id).ok()?;
        self.0.lock().get(&id).cloned().flatten()
    }

    /// Forgets a task.
    pub(crate) fn remove(&self, id: &str) {
        self.0.lock().retain(|known, _| known.as_str() != id);
    }

    /// Every task.
    pub(crate) fn all(&self) -> Vec<Arc<Task>> {
        self.0.lock().values().flatten().cloned().collect()
    }

    /// Whether no id is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Slot<'_> {
    /// Puts the created task in its place.
    pub(crate) fn fill(mut self, task: Arc<Task>) {
        self.filled = true;
        self.tasks.0.lock().insert(self.id.clone(), Some(task));
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.tasks.0.lock().remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_freed_by_failure() {
        let tasks = Tasks::default();
        let id = Id::new("a").unwrap();
        let slot = tasks.reserve(&id).unwrap();
        assert_eq!(tasks.reserve(&id).unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(tasks.get("a").unwrap_err().kind(), Kind::NotFound);
        drop(slot);
        assert!(tasks.is_empty());
        assert!(tasks.reserve(&id).is_ok());
    }
}
