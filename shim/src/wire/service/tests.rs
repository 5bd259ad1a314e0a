use std::collections::HashMap;
use std::fs;
use std::time::SystemTime;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use sandbox_core::FakeBackend;
use tokio::sync::mpsc;

use super::*;

struct Bed {
    service: Service,
    backend: Arc<FakeBackend>,
    events: mpsc::Receiver<(SystemTime, Event)>,
    dir: tempfile::TempDir,
}

fn context() -> TtrpcContext {
    TtrpcContext {
        mh: Default::default(),
        metadata: HashMap::new(),
        timeout_nano: 0,
        connection_data: Default::default(),
    }
}

impl Bed {
    fn new() -> Self {
        let backend = Arc::new(FakeBackend::default());
        let (events, receiver) = Events::queue();
        let service = Service {
            pod: Arc::new(Pod::new(Arc::clone(&backend) as _, None)),
            tasks: Arc::default(),
            events,
            version: Version::V2,
            done: Arc::default(),
        };
        Self { service, backend, events: receiver, dir: tempfile::tempdir().unwrap() }
    }

    fn bundle(&self, id: &str, config: &str) -> String {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        bundle.display().to_string()
    }

    async fn create(&self, id: &str) -> ttrpc::Result<CreateTaskResponse> {
        let bundle = self.bundle("b", "{\"ociVersion\":\"1.1.0\"}");
        let req = CreateTaskRequest { id: id.into(), bundle, ..Default::default() };
        self.service.create(&context(), req).await
    }

    async fn create_second(&self, id: &str) -> ttrpc::Result<CreateTaskResponse> {
        let bundle = self.bundle("second", "{\"ociVersion\":\"1.1.0\"}");
        let req = CreateTaskRequest { id: id.into(), bundle, ..Default::default() };
        self.service.create(&context(), req).await
    }

    async fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<StartResponse> {
        let req = StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.service.start(&context(), req).await
    }

    async fn exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<Empty> {
        let spec = Any {
            value: b"{\"user\":{\"uid\":0,\"gid\":0},\"cwd\":\"/\",\"args\":[\"sh\"]}".to_vec(),
            ..Any::default()
        };
        let (id, exec_id) = (id.into(), exec_id.into());
        let req = ExecProcessRequest { id, exec_id, spec: Some(spec).into(), ..Default::default() };
        self.service.exec(&context(), req).await
    }

    async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<DeleteResponse> {
        let req = DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.service.delete(&context(), req).await
    }

    async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<WaitResponse> {
        let req = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.service.wait(&context(), req).await
    }

    async fn kill(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<Empty> {
        let (id, exec_id) = (id.into(), exec_id.into());
        self.service
            .kill(&context(), KillRequest { id, exec_id, signal, ..Default::default() })
            .await
    }

    async fn status(&self, id: &str) -> String {
        let req = StateRequest { id: id.into(), ..Default::default() };
        format!("{:?}", self.service.state(&context(), req).await.unwrap().status.unwrap())
    }

    /// The names of the events so far.
    fn reported(&mut self) -> Vec<String> {
        let mut reported = Vec::new();
        while let Ok((_, event)) = self.events.try_recv() {
            let text = format!("{event:?}");
            let name = text.split_whitespace().next().unwrap_or_default().to_owned();
            match event {
                Event::Exited { exec, exit, .. } => {
                    reported.push(format!(
                        "{name} {} {}",
                        exec.map_or("init".into(), String::from),
                        exit.status
                    ));
                }
                _ => reported.push(name),
            }
        }
        reported
    }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn a_whole_life_is_reported_in_order() {
    let mut bed = Bed::new();
    assert_eq!(bed.create("c").await.unwrap().pid, 4242);
    assert_eq!(bed.status("c").await, "CREATED");
    bed.start("c", "").await.unwrap();
    bed.exec("c", "e").await.unwrap();
    bed.start("c", "e").await.unwrap();
    assert_eq!(bed.status("c").await, "RUNNING");
    let container = bed.backend.container("c").unwrap();
    // Both exit at once: the container's exit is still reported last.
    container.end(3);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    container.end_exec("e", 5);
    assert_eq!(bed.wait("c", "").await.unwrap().exit_status, 3);
    assert_eq!(bed.wait("c", "e").await.unwrap().exit_status, 5);
    assert_eq!(bed.status("c").await, "STOPPED");
    assert_eq!(bed.delete("c", "e").await.unwrap().exit_status, 5);
    assert_eq!(bed.delete("c", "").await.unwrap().exit_status, 3);
    assert_eq!(code(bed.delete("c", "").await), Code::NOT_FOUND);
    let reported = bed.reported();
    let expected = [
        "Created",
        "Started",
        "ExecAdded",
        "ExecStarted",
        "Exited e 5",
        "Exited init 3",
        "Deleted",
    ];
    assert_eq!(reported, expected);
}

#[tokio::test]
async fn verbs_out_of_order_get_the_right_codes() {
    let bed = Bed::new();
    assert_eq!(code(bed.start("c", "").await), Code::NOT_FOUND);
    bed.create("c").await.unwrap();
    assert_eq!(code(bed.create("c").await), Code::ALREADY_EXISTS);
    assert_eq!(code(bed.exec("c", "e").await), Code::FAILED_PRECONDITION);
    bed.start("c", "").await.unwrap();
    assert_eq!(code(bed.start("c", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bed.delete("c", "").await), Code::FAILED_PRECONDITION);
    bed.exec("c", "e").await.unwrap();
    assert_eq!(code(bed.exec("c", "e").await), Code::ALREADY_EXISTS);
    assert_eq!(code(bed.start("c", "f").await), Code::NOT_FOUND);
    assert_eq!(code(bed.kill("c", "", 99).await), Code::INVALID_ARGUMENT);
    bed.kill("c", "", 9).await.unwrap();
    assert_eq!(bed.wait("c", "").await.unwrap().exit_status, 137);
    assert_eq!(code(bed.exec("c", "g").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bed.kill("c", "", 9).await), Code::NOT_FOUND);
}

#[tokio::test]
async fn an_exec_that_never_started_is_deleted_with_status_0() {
    let bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.start("c", "").await.unwrap();
    bed.exec("c", "e").await.unwrap();
    assert_eq!(bed.delete("c", "e").await.unwrap().exit_status, 0);
    bed.exec("c", "e").await.unwrap();
    bed.start("c", "e").await.unwrap();
    bed.kill("c", "e", 9).await.unwrap();
    bed.wait("c", "e").await.unwrap();
    assert_eq!(bed.delete("c", "e").await.unwrap().exit_status, 137);
}

#[tokio::test]
async fn a_failed_create_frees_the_id_and_bad_ids_are_refused() {
    let bed = Bed::new();
    let missing = bed.dir.path().join("none").display().to_string();
    let req = CreateTaskRequest { id: "c".into(), bundle: missing, ..Default::default() };
    assert_eq!(code(bed.service.create(&context(), req).await), Code::INVALID_ARGUMENT);
    bed.create("c").await.unwrap();
    let long = "x".repeat(300);
    for bad in ["a/b", "a\0b", "", long.as_str()] {
        assert_eq!(code(bed.create(bad).await), Code::INVALID_ARGUMENT, "{bad:?}");
    }
}

#[tokio::test]
async fn a_container_that_never_started_can_be_killed_and_deleted() {
    let mut bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.kill("c", "", 9).await.unwrap();
    assert_eq!(bed.wait("c", "").await.unwrap().exit_status, 137);
    bed.delete("c", "").await.unwrap();
    assert_eq!(bed.reported(), ["Created", "Exited init 137", "Deleted"]);
    bed.create("d").await.unwrap();
    assert_eq!(bed.delete("d", "").await.unwrap().exit_status, 137);
}

#[tokio::test]
async fn out_of_memory_is_reported_before_the_exit() {
    let mut bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.start("c", "").await.unwrap();
    bed.backend.container("c").unwrap().run_out_of_memory();
    assert_eq!(bed.wait("c", "").await.unwrap().exit_status, 137);
    assert_eq!(bed.reported(), ["Created", "Started", "Oom", "Exited init 137"]);
}

#[tokio::test]
async fn pausing_is_a_state() {
    let bed = Bed::new();
    bed.create("c").await.unwrap();
    let named = || "c".to_owned();
    let pause = async || {
        let req = PauseRequest { id: named(), ..Default::default() };
        bed.service.pause(&context(), req).await
    };
    let resume = async || {
        let req = ResumeRequest { id: named(), ..Default::default() };
        bed.service.resume(&context(), req).await
    };
    assert_eq!(code(pause().await), Code::FAILED_PRECONDITION);
    bed.start("c", "").await.unwrap();
    assert_eq!(code(resume().await), Code::FAILED_PRECONDITION);
    pause().await.unwrap();
    assert_eq!(bed.status("c").await, "PAUSED");
    assert_eq!(code(bed.exec("c", "e").await), Code::FAILED_PRECONDITION);
    resume().await.unwrap();
    assert_eq!(bed.status("c").await, "RUNNING");
}

#[tokio::test]
async fn the_shim_exits_with_its_last_container() {
    let bed = Bed::new();
    let connect = ConnectRequest { id: "c".into(), ..Default::default() };
    let unknown = bed.service.connect(&context(), connect).await.unwrap();
    assert_eq!((unknown.shim_pid, unknown.task_pid), (std::process::id(), 0));
    bed.create("c").await.unwrap();
    bed.service.shutdown(&context(), ShutdownRequest::default()).await.unwrap();
    let soon = std::time::Duration::from_millis(20);
    assert!(tokio::time::timeout(soon, bed.service.done.notified()).await.is_err());
    bed.delete("c", "").await.unwrap();
    bed.service.shutdown(&context(), ShutdownRequest::default()).await.unwrap();
    assert!(tokio::time::timeout(soon, bed.service.done.notified()).await.is_ok());
}

/// A kill acts on a process whose start is under way, and the order of events holds.
#[tokio::test]
async fn a_kill_during_a_start_is_not_lost() {
    let mut bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.backend.steps_take(std::time::Duration::from_millis(200));
    bed.create_second("d").await.unwrap();
    let kill = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(bed.status("d").await, "CREATED");
        bed.kill("d", "", 9).await.unwrap();
    };
    let (started, ()) = tokio::join!(bed.start("d", ""), kill);
    started.unwrap();
    assert_eq!(bed.wait("d", "").await.unwrap().exit_status, 137);
    let asked = bed.backend.journal.read();
    assert_eq!(asked.iter().filter(|entry| *entry == "signal d 9").count(), 1, "{asked:?}");
    bed.delete("d", "").await.unwrap();
    assert_eq!(bed.reported(), ["Created", "Created", "Started", "Exited init 137", "Deleted"]);
}

/// Deletes at the same time release a container once.
#[tokio::test]
async fn a_container_is_deleted_once() {
    let mut bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.start("c", "").await.unwrap();
    bed.backend.container("c").unwrap().end(0);
    bed.wait("c", "").await.unwrap();
    bed.backend.steps_take(std::time::Duration::from_millis(20));
    let (one, two) = tokio::join!(bed.delete("c", ""), bed.delete("c", ""));
    assert_eq!((one.unwrap().exit_status, two.unwrap().exit_status), (0, 0));
    let deletes = bed.backend.journal.read();
    assert_eq!(deletes.iter().filter(|entry| *entry == "delete c").count(), 1);
    assert_eq!(bed.reported(), ["Created", "Started", "Exited init 0", "Deleted"]);
}

/// A Pod that is stopped from outside leaves nothing of its containers.
#[tokio::test]
async fn a_stop_releases_every_container() {
    let bed = Bed::new();
    bed.create("c").await.unwrap();
    bed.start("c", "").await.unwrap();
    bed.service.stop().await.unwrap();
    assert_eq!(bed.wait("c", "").await.unwrap().exit_status, 137);
    let journal = bed.backend.journal.read();
    assert_eq!(journal[journal.len() - 2..], ["stop", "delete c"]);
}
