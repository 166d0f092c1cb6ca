//! The machine loses power. Whatever a client was told by then is true after the next boot: a
//! container is there with its name and its policy, or is gone; one that was stopped stays stopped, one
//! that was to go on goes on, and an exit code is what it was.

use std::collections::BTreeMap;

use berth_tests::{
    Capability, Disk, Engine, Format, Image, Loss, Machine, Random, engine, eventually,
    images_are_synced, skip_without,
};
use serde_json::{Value, json};

/// What is known of a container by its name: its status after a boot, with its exit code if it has
/// one that was told; `None` if it is gone.
type Told = BTreeMap<&'static str, Option<(&'static str, Option<i64>)>>;

/// A moment of the disk. What is being asked for then is not in what was told.
struct Moment {
    at: usize,
    told: Told,
}

/// A client, and what it was told.
struct Client {
    engine: Engine,
    image: String,
    told: Told,
    moments: Vec<Moment>,
}

impl Client {
    /// Notes what is known at this moment.
    fn note(&mut self, disk: &Disk) {
        self.moments.push(Moment { at: disk.moment(), told: self.told.clone() });
    }

    /// Asks for something that is about the containers of these names, after which this is known of
    /// them. Until the answer nothing is.
    async fn ask<const N: usize>(
        &mut self,
        disk: &Disk,
        about: [&'static str; N],
        work: impl AsyncFnOnce(&Self),
        then: [Option<(&'static str, Option<i64>)>; N],
    ) {
        self.told.retain(|name, _| !about.contains(name));
        self.note(disk);
        work(self).await;
        self.told.extend(about.into_iter().zip(then));
        self.note(disk);
    }

    fn body(&self, policy: &str, script: &str) -> Value {
        json!({
            "Image": self.image,
            "Cmd": ["sh", "-c", script],
            "HostConfig": { "RestartPolicy": { "Name": policy }, "NetworkMode": "none" },
        })
    }

    async fn live(&mut self, disk: &Disk) {
        let sleeps = "exec sleep 1000";
        let (always, unless) = (self.body("always", sleeps), self.body("unless-stopped", sleeps));
        let ends = self.body("", "exit 7");
        let created = Some(("created", None));
        self.ask(
            disk,
            ["ends"],
            async |own| drop(own.engine.create("ends", ends).await),
            [created],
        )
        .await;
        let run = async |own: &Self| {
            own.engine.start("ends").await;
            assert_eq!(own.engine.wait("ends").await, 7);
        };
        self.ask(disk, ["ends"], run, [Some(("exited", Some(7)))]).await;
        let start = async |own: &Self| {
            own.engine.create("always", always).await;
            own.engine.start("always").await;
        };
        self.ask(disk, ["always"], start, [Some(("running", None))]).await;
        let start = async |own: &Self| {
            own.engine.create("unless", unless).await;
            own.engine.start("unless").await;
        };
        self.ask(disk, ["unless"], start, [Some(("running", None))]).await;
        let stop = async |own: &Self| {
            drop(own.engine.post("/containers/unless/stop?t=0", Value::Null).await)
        };
        self.ask(disk, ["unless"], stop, [Some(("exited", Some(137)))]).await;
        let rename = async |own: &Self| {
            own.engine.post("/containers/ends/rename?name=renamed", Value::Null).await;
        };
        let then = [None, Some(("exited", Some(7)))];
        self.ask(disk, ["ends", "renamed"], rename, then).await;
        let update = json!({ "RestartPolicy": { "Name": "no" } });
        let update =
            async |own: &Self| drop(own.engine.post("/containers/always/update", update).await);
        self.ask(disk, ["always"], update, [Some(("exited", Some(255)))]).await;
        let remove = async |own: &Self| own.engine.remove("renamed").await;
        self.ask(disk, ["renamed"], remove, [None]).await;
        let mut brief = self.body("", "true");
        brief["HostConfig"]["AutoRemove"] = json!(true);
        let run = async |own: &Self| {
            own.engine.create("brief", brief).await;
            own.engine.start("brief").await;
            own.engine.post("/containers/brief/wait?condition=removed", Value::Null).await;
        };
        self.ask(disk, ["brief"], run, [None]).await;
        let start = async |own: &Self| own.engine.start("unless").await;
        self.ask(disk, ["unless"], start, [Some(("running", None))]).await;
    }
}

#[tokio::test]
async fn what_docker_was_told_survives_a_power_loss_on_ext4() {
    survives(Format::Ext4).await;
}

#[tokio::test]
async fn what_docker_was_told_survives_a_power_loss_on_xfs() {
    if !skip_without(Capability::Xfs) {
        survives(Format::Xfs).await;
    }
}

async fn survives(format: Format) {
    if [Capability::LoopDevices, Capability::Fuse].into_iter().any(skip_without) {
        return;
    }
    let mut machine = Machine::new();
    machine.config = engine::config();
    let root = machine.path("root");
    let disk = Disk::mount(&machine, format, &root);
    let daemon = machine.start().await;
    let image = daemon.cri().pull_image(&machine, Image::busybox()).await;
    eventually("the sync of the image", async || images_are_synced(&machine)).await;
    let engine = Engine::of(&machine);
    let mut client = Client { engine, image, told: Told::new(), moments: Vec::new() };
    client.live(&disk).await;
    machine.reboot(daemon);
    let mut random = Random::new(std::process::id().into());
    let losses = client.moments.iter().flat_map(|moment| {
        let next = Loss::Some(random.number());
        [(moment, Loss::Unflushed), (moment, next)]
    });
    for (moment, loss) in losses {
        let when = format!("{format:?}: {loss:?} at {}", moment.at);
        let image = machine.path("image");
        disk.image(&machine, moment.at, loss, &image);
        disk.mount_image(&machine, &image, &root);
        let daemon = machine.start().await;
        assert_told(&client.engine, &moment.told, &when).await;
        assert_all_can_be_removed(&client.engine, &machine, &when).await;
        machine.reboot(daemon);
    }
}

async fn assert_told(engine: &Engine, told: &Told, when: &str) {
    for (name, expected) in told {
        let path = format!("/containers/{name}/json");
        let Some((expected, code)) = expected else {
            let (status, seen) = engine.request("GET", &path, None).await;
            assert_eq!(status, 404, "{when}: {name}: {seen}");
            continue;
        };
        eventually(&format!("{when}: {name} is {expected}"), async || {
            let (status, seen) = engine.request("GET", &path, None).await;
            assert_eq!(status, 200, "{when}: {name}: {seen}");
            seen["State"]["Status"] == *expected
        })
        .await;
        let seen = engine.inspect(name).await;
        if let Some(code) = code {
            assert_eq!(seen["State"]["ExitCode"], *code, "{when}: {name}: {seen}");
        }
    }
    let brief = engine.request("GET", "/containers/brief/json", None).await;
    assert_eq!(brief.0, 404, "{when}: what has --rm goes with its boot: {}", brief.1);
}

async fn assert_all_can_be_removed(engine: &Engine, machine: &Machine, when: &str) {
    for container in engine.get("/containers/json?all=1").await.as_array().unwrap() {
        engine.remove(container["Id"].as_str().unwrap()).await;
    }
    machine.assert_clean().await;
    let left =
        machine.output("ls", &[&machine.path("root/engine/containers").display().to_string()]);
    assert_eq!(left, "", "{when}");
}
