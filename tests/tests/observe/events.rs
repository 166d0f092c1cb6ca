//! GetContainerEvents: the events of a pod's life, how soon they come, and what happens to a
//! listener that does not read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_proto::v1::{
    self, ContainerEventType::ContainerCreatedEvent as Created,
    ContainerEventType::ContainerDeletedEvent as Deleted,
    ContainerEventType::ContainerStartedEvent as Started,
    ContainerEventType::ContainerStoppedEvent as Stopped,
};
use berth_tests::{Cri, container, pod, ready, without_load};
use tonic::{Code, Status, Streaming};

type Listener = Streaming<v1::ContainerEventResponse>;

async fn listen(cri: &Cri) -> Listener {
    cri.runtime.clone().get_container_events(v1::GetEventsRequest {}).await.unwrap().into_inner()
}

async fn next(listener: &mut Listener) -> v1::ContainerEventResponse {
    let event = tokio::time::timeout(Duration::from_secs(20), listener.message()).await;
    event.expect("an event").unwrap().expect("more events")
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

fn states(event: &v1::ContainerEventResponse) -> Vec<v1::ContainerState> {
    event.containers_statuses.iter().map(v1::ContainerStatus::state).collect()
}

/// Two listeners of one life.
struct Told<'a> {
    listeners: [&'a mut Listener; 2],
    /// The time of the last event.
    last: i64,
}

impl Told<'_> {
    /// Asserts that the next event of both listeners is this one, of `whose`, with the states of its
    /// pod and of the pod's only container.
    async fn hear(
        &mut self,
        kind: v1::ContainerEventType,
        whose: &str,
        (sandbox, pod, container): (&String, v1::PodSandboxState, Option<v1::ContainerState>),
    ) {
        let [first, second] = &mut self.listeners;
        let event = next(first).await;
        let status = event.pod_sandbox_status.clone().unwrap();
        assert_eq!((event.container_event_type(), event.container_id.as_str()), (kind, whose));
        assert!(event.created_at > self.last && event.created_at <= now());
        assert_eq!((&status.id, status.state()), (sandbox, pod), "{kind:?}");
        assert!(!status.network.unwrap().ip.is_empty(), "a whole status");
        assert_eq!(states(&event), Vec::from_iter(container), "{kind:?}");
        self.last = event.created_at;
        assert_eq!(next(second).await, event, "every listener hears the same");
    }
}

#[tokio::test]
async fn a_pods_life_is_told_in_order_with_what_it_was_then() {
    use v1::{ContainerState as Container, PodSandboxState as Pod};
    let (machine, daemon, cri, image) = ready().await;
    let mut first = listen(&cri).await;
    let mut second = listen(&cri).await;
    let mut told = Told { last: 0, listeners: [&mut first, &mut second] };
    // Each event is read before the next verb: it comes with what is true when it is sent, and that
    // may be later than the change.
    let sandbox = cri.run_pod(pod(&machine, "told")).await.unwrap();
    told.hear(Created, &sandbox, (&sandbox, Pod::SandboxReady, None)).await;
    told.hear(Started, &sandbox, (&sandbox, Pod::SandboxReady, None)).await;
    let id = cri.create(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let with = |state| (&sandbox, Pod::SandboxReady, state);
    told.hear(Created, &id, with(Some(Container::ContainerCreated))).await;
    cri.start(&id).await.unwrap();
    told.hear(Started, &id, with(Some(Container::ContainerRunning))).await;
    cri.stop(&id, 0).await.unwrap();
    told.hear(Stopped, &id, with(Some(Container::ContainerExited))).await;
    cri.remove(&id).await.unwrap();
    told.hear(Deleted, &id, with(None)).await;
    cri.stop_pod(&sandbox).await.unwrap();
    cri.stop_pod(&sandbox).await.unwrap();
    told.hear(Stopped, &sandbox, (&sandbox, Pod::SandboxNotready, None)).await;
    cri.remove_pod(&sandbox).await.unwrap();
    told.hear(Deleted, &sandbox, (&sandbox, Pod::SandboxNotready, None)).await;

    // A container that ends by itself has an event too, and a listener that goes away disturbs
    // nobody.
    drop(first);
    let sandbox = cri.run_pod(pod(&machine, "again")).await.unwrap();
    let failed = cri.create(
        &sandbox,
        v1::ContainerConfig { command: vec!["/none".into()], ..container("f", &image, "") },
    );
    let failed = failed.await.unwrap();
    cri.start(&failed).await.unwrap_err();
    let told = [
        next(&mut second).await,
        next(&mut second).await,
        next(&mut second).await,
        next(&mut second).await,
    ];
    assert_eq!(told[3].container_event_type(), Stopped);
    assert_eq!(told[3].containers_statuses[0].reason, "StartError");

    // A new daemon sends no events for what was there before.
    daemon.kill();
    let daemon = machine.start().await;
    let mut anew = listen(&daemon.cri()).await;
    daemon.cri().remove_pod(&sandbox).await.unwrap();
    let event = next(&mut anew).await;
    assert_eq!((event.container_event_type(), event.container_id), (Stopped, sandbox.clone()));
    assert_eq!(next(&mut anew).await.container_id, failed);
    assert_eq!(next(&mut anew).await.pod_sandbox_status.unwrap().id, sandbox);
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_end_is_told_within_50_ms_and_so_is_want_of_memory() {
    let _alone = without_load().await;
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "ends")).await.unwrap();
    let mut listener = listen(&cri).await;
    let mut delays = Vec::new();
    for number in 0..10 {
        let eats = number % 2 == 1;
        let script =
            if eats { "x=$(head -c 60000000 /dev/zero | tr '\\0' a); echo $x" } else { "exit 3" };
        let mut config = container(&format!("c{number}"), &image, script);
        let limits =
            v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
        config.linux.as_mut().unwrap().resources = Some(limits);
        let id = cri.run(&sandbox, config).await.unwrap();
        let event = loop {
            let event = next(&mut listener).await;
            if event.container_event_type() == Stopped {
                break event;
            }
        };
        let status = event.containers_statuses.iter().find(|status| status.id == id).unwrap();
        assert_eq!(status.reason, if eats { "OOMKilled" } else { "Error" });
        delays.push(now() - status.finished_at);
        assert_eq!(cri.status(&id).await.unwrap(), *status, "as can be read");
    }
    delays.sort_unstable();
    assert!(delays[delays.len() / 2] < 50_000_000, "nanoseconds: {delays:?}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_holds_up_nobody() {
    let _alone = without_load().await;
    let (machine, _daemon, cri, image) = ready().await;
    let mut config = pod(&machine, "slow");
    // Each event contains it, so that the buffers between daemon and listener are full soon.
    config.annotations.insert("large".into(), "x".repeat(16 << 10));
    let sandbox = cri.run_pod(config).await.unwrap();
    let mut slow = listen(&cri).await;
    let mut quick = listen(&cri).await;
    let heard = tokio::spawn(async move {
        let mut last = next(&mut quick).await;
        while last.container_event_type() != Stopped {
            last = next(&mut quick).await;
        }
        last.container_id
    });
    // Two events for each container: more than the 1024 that are kept for a listener, and than fit
    // into the HTTP/2 window of 2 MiB.
    for number in 0..650 {
        let id =
            cri.create(&sandbox, container(&format!("c{number}"), &image, "true")).await.unwrap();
        cri.remove(&id).await.unwrap();
    }
    cri.stop_pod(&sandbox).await.unwrap();
    assert_eq!(heard.await.unwrap(), sandbox, "all was told to the one who read");
    let cut_off: Status = loop {
        match tokio::time::timeout(Duration::from_secs(20), slow.message())
            .await
            .expect("an event or an error")
        {
            Ok(event) => assert!(event.is_some(), "an error tells that something is missing"),
            Err(status) => break status,
        }
    };
    assert_eq!(cut_off.code(), Code::ResourceExhausted, "{cut_off}");
    assert!(cut_off.message().contains("listen again"), "{cut_off}");
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
