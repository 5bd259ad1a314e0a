//! The shim's tasks by id.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    fn table(&self) -> MutexGuard<'_, HashMap<Id, Option<Arc<Task>>>> {
        // Every change to the table is one call that cannot panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id.
    pub(crate) fn reserve(&self, id: &Id) -> Result<Slot<'_>> {
        match self.table().entry(id.clone()) {
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

    /// As [`Tasks::get`], for callers that take absence for an answer.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Task>> {
        let id = Id::new(id).ok()?;
        self.table().get(&id).cloned().flatten()
    }

    /// Forgets a task.
    pub(crate) fn remove(&self, id: &str) {
        self.table().retain(|known, _| known.as_str() != id);
    }

    /// Whether no id is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }
}

impl Slot<'_> {
    /// Puts the created task in its place.
    pub(crate) fn fill(mut self, task: Arc<Task>) {
        self.filled = true;
        self.tasks.table().insert(self.id.clone(), Some(task));
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.tasks.table().remove(&self.id);
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
