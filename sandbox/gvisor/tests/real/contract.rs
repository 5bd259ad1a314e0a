//! What every backend promises, on a real runsc.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_core::contract::{self, Subject};
use sandbox_core::{Backend, CreateContainer, ExecProcess, StdioPaths};

use crate::bed::Bed;

/// Exits with the status that it reads.
const SCRIPT: &str = "read status; exit $status";

struct Gvisor(Bed);

impl Gvisor {
    fn stdio(&self, name: &str) -> StdioPaths {
        let fifo = self.0.dir.path().join(name);
        // The id of an earlier container comes back.
        let _ = std::fs::remove_file(&fifo);
        StdioPaths { stdin: Some(self.0.empty_fifo(name)), ..StdioPaths::default() }
    }
}

#[async_trait]
impl Subject for Gvisor {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.backend())
    }

    fn container(&self, id: &str) -> CreateContainer {
        let mut request = self.0.request(id, &self.0.spec(&["sh", "-c", SCRIPT]));
        request.stdio = self.stdio(&format!("{id}.in"));
        request
    }

    fn exec(&self, container: &str, id: &str) -> ExecProcess {
        let stdio = self.stdio(&format!("{container}-{id}.in"));
        self.0.exec_request(id, &["sh", "-c", SCRIPT], stdio)
    }

    async fn end(&self, container: &str, exec: Option<&str>, status: u32) {
        let name = exec.map_or(container.to_owned(), |exec| format!("{container}-{exec}"));
        let fifo = self.0.dir.path().join(format!("{name}.in"));
        writeln!(File::options().write(true).open(fifo).unwrap(), "{status}").unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root, env:BULKHEAD_RUNSC"]
async fn keeps_what_every_backend_promises() {
    let subject = Gvisor(Bed::new().await);
    contract::holds(&subject).await;
    subject.0.assert_clean();
}
