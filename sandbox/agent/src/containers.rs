//! The guest's containers by ID.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::container::Container;
use crate::error::{Error, Kind, Result, invalid, missing, refused};
use crate::process::Process;

/// Upper bound on containers of one Pod.
const CONTAINERS_MAX: usize = 256;

/// containerd's limit.
const ID_MAX: usize = 76;

/// The containers by ID.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<HashMap<String, Slot>>);

#[derive(Debug)]
enum Slot {
    /// The ID is reserved for a container that is being created.
    Creating,
    Created(Arc<Container>),
}

impl Containers {
    /// Reserves `id` for a container that is about to be created.
    pub(crate) fn reserve(&self, id: &str) -> Result<()> {
        check_id("container", id)?;
        let mut table = self.0.lock();
        if table.contains_key(id) {
            let text = format!("container {id:?} already exists");
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        if table.len() >= CONTAINERS_MAX {
            return Err(refused(format!("the guest has {CONTAINERS_MAX} containers; delete some")));
        }
        table.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    /// Adds the container that `id` was reserved for.
    pub(crate) fn insert(&self, id: String, container: Arc<Container>) {
        self.0.lock().insert(id, Slot::Created(container));
    }

    /// Releases `id`: the container is deleted or could not be created.
    pub(crate) fn remove(&self, id: &str) {
        self.0.lock().remove(id);
    }

    /// The container with this ID.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>> {
        match self.0.lock().get(id) {
            Some(Slot::Created(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(refused(format!("container {id:?} is being created"))),
            None => Err(missing(format!("there is no container {id:?}"))),
        }
    }

    /// A process: the container's init process where `exec` is empty.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        self.get(id)?.process(exec)
    }
}

/// Checks an ID, which becomes a file name and an argument.
pub(crate) fn check_id(what: &str, id: &str) -> Result<()> {
    let valid = (1..=ID_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !id.starts_with(['-', '.']);
    if valid {
        return Ok(());
    }
    Err(invalid(format!(
        "{what} ID {id:?} is not 1 to {ID_MAX} letters, digits, '_', '-' and '.', of which the \
         first is neither '-' nor '.'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_reserved_once() {
        let containers = Containers::default();
        containers.reserve("a").unwrap();
        assert_eq!(containers.reserve("a").unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(containers.get("a").unwrap_err().kind(), Kind::FailedPrecondition);
        containers.remove("a");
        assert_eq!(containers.get("a").unwrap_err().kind(), Kind::NotFound);
        for n in 0..CONTAINERS_MAX {
            containers.reserve(&n.to_string()).unwrap();
        }
        assert_eq!(containers.reserve("a").unwrap_err().kind(), Kind::FailedPrecondition);
    }

    #[test]
    fn ids_are_file_names() {
        for id in ["", "-", "..", "a/b", "a b", &"x".repeat(77)] {
            assert!(check_id("exec", id).is_err(), "{id:?}");
        }
        for id in ["a", "0a_b-c.d", &"x".repeat(76)] {
            assert!(check_id("exec", id).is_ok(), "{id:?}");
        }
    }
}
