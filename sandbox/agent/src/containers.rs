//! The guest's containers by id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::container::Container;
use crate::error::{Error, Kind, Result, invalid, missing, refused};
use crate::process::Process;

/// More than a Pod ever has.
const CONTAINERS_MAX: usize = 256;

/// containerd's limit; a control group and a socket's path have to bear it.
const ID_MAX: usize = 76;

/// The containers, by id.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<HashMap<String, Slot>>);

#[derive(Debug)]
enum Slot {
    /// Its id is taken, nothing else is known.
    Making,
    Made(Arc<Container>),
}

impl Containers {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `id` for a container that is about to be made.
    pub(crate) fn reserve(&self, id: &str) -> Result<()> {
        check_id("container", id)?;
        let mut table = self.table();
        if table.contains_key(id) {
            let text = format!("there is a container {id:?} already");
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        if table.len() >= CONTAINERS_MAX {
            return Err(refused(format!("the guest has {CONTAINERS_MAX} containers; delete some")));
        }
        table.insert(id.to_owned(), Slot::Making);
        Ok(())
    }

    /// The container with the reserved `id` is there, or could not be made.
    pub(crate) fn settle(&self, id: &str, made: Option<Arc<Container>>) {
        match made {
            Some(container) => self.table().insert(id.to_owned(), Slot::Made(container)),
            None => self.table().remove(id),
        };
    }

    /// The container with this id.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>> {
        match self.table().get(id) {
            Some(Slot::Made(container)) => Ok(container.clone()),
            Some(Slot::Making) => Err(refused(format!("container {id:?} is being made"))),
            None => Err(missing(format!("there is no container {id:?}"))),
        }
    }

    /// A process: the container's first one where `exec` is empty.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>> {
        self.get(id)?.process(exec)
    }
}

/// Checks an id, which is to be a file's name and an argument.
pub(crate) fn check_id(what: &str, id: &str) -> Result<()> {
    let fine = (1..=ID_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !id.starts_with(['-', '.']);
    if fine {
        return Ok(());
    }
    Err(invalid(format!(
        "{what} id {id:?} is not 1 to {ID_MAX} letters, digits, '_', '-' and '.', of which the \
         first is neither '-' nor '.'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once() {
        let containers = Containers::default();
        containers.reserve("a").unwrap();
        assert_eq!(containers.reserve("a").unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(containers.get("a").unwrap_err().kind(), Kind::FailedPrecondition);
        containers.settle("a", None);
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
