//! The running execs of a container.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The running execs' ids by the sandbox's process ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Execs(Arc<Mutex<HashMap<u32, String>>>);

/// One exec's entry, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    execs: Execs,
    pid: u32,
}

impl Execs {
    /// Lists the exec `id`, which runs as `pid`.
    pub(crate) fn enter(&self, pid: u32, id: String) -> Entry {
        self.0.lock().insert(pid, id);
        Entry { execs: self.clone(), pid }
    }

    /// The exec that runs as `pid`.
    pub(crate) fn id(&self, pid: u32) -> Option<String> {
        self.0.lock().get(&pid).cloned()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.execs.0.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_is_listed_while_its_entry_exists() {
        let execs = Execs::default();
        let entry = execs.enter(7, "e1".to_owned());
        assert_eq!(execs.id(7).as_deref(), Some("e1"));
        assert_eq!(execs.id(8), None);
        drop(entry);
        assert_eq!(execs.id(7), None);
    }
}
