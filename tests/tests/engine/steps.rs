//! Every named step of docker's verbs: the daemon is killed there, or the step fails. Then the same
//! question is asked again, the answer is one of those that it may have, and in the end nothing is
//! left.

use std::{fs, net::Ipv4Addr};

use berth_tests::{
    Capability, Daemon, DockerRegistry, Engine, Image, Layer, Machine, digest, engine, faults,
    skip_without,
};
use serde_json::{Value, json};

/// A question to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Create,
    Start,
    Stop,
    Remove,
    Tag,
    Untag,
    RemoveImage,
    Commit,
    Import,
    Load,
    Push,
    MakeNetwork,
    RemoveNetwork,
    Connect,
    /// To a network that has the default route from then on.
    Lead,
    Disconnect,
}

/// The verbs that come to a step of the daemon; those of the node's steps that a run comes to as
/// well, since the engine gives them an order of its own.
fn verbs_of(step: &str) -> &'static [Verb] {
    match step.split_once('.').expect("OPERATION.STEP") {
        ("docker_create", _) => &[Verb::Create],
        // There is no pause process where each container has a PID namespace of its own.
        ("run_sandbox" | "stop_sandbox", "pause") => &[],
        ("attach", _) => &[Verb::Start, Verb::Connect],
        ("docker_start" | "run_sandbox" | "create_container", _) => &[Verb::Start],
        // No other container's namespaces are joined.
        ("start_container", "target") => &[],
        ("start_container", _) => &[Verb::Start],
        ("docker_end" | "stop_sandbox" | "remove_sandbox", _) => &[Verb::Stop],
        ("stop_container", "record" | "signal") => &[Verb::Stop],
        ("docker_remove", _) => &[Verb::Remove],
        ("name_image", "tag") => &[Verb::Tag],
        ("name_image", _) => &[Verb::Untag],
        ("remove_image", _) => &[Verb::RemoveImage],
        ("docker_commit", _) => &[Verb::Commit],
        ("write_layer" | "write_image", _) => &[Verb::Commit, Verb::Import],
        ("import_image", _) => &[Verb::Load],
        ("pull_image", "index") => &[Verb::Commit, Verb::Import, Verb::Load],
        ("pull_image", "layer" | "commit" | "add" | "forget") => &[Verb::Load],
        ("push_image", _) => &[Verb::Push],
        ("docker_network", "record" | "bridge") => &[Verb::MakeNetwork],
        ("docker_network", "unbridge" | "forget") => &[Verb::RemoveNetwork],
        ("docker_network", "connect" | "connected") => &[Verb::Connect, Verb::Lead],
        ("connect_sandbox", _) => &[Verb::Connect],
        ("lead_sandbox", _) => &[Verb::Lead],
        ("docker_network" | "disconnect_sandbox" | "detach", _) => &[Verb::Disconnect],
        // All is done, and the answer is lost.
        ("docker_rpc", _) => &[Verb::Create, Verb::Start, Verb::Stop, Verb::Remove],
        _ => &[],
    }
}

/// The same of the plugin's steps: those of ADD and DEL are walked with pods, too, but for a container
/// that goes on.
fn verbs_of_plugin(step: &str) -> &'static [Verb] {
    match step.split_once('.').expect("OPERATION.STEP") {
        // No bandwidth is asked for, and docker0 has been made by the first run.
        ("add", "bandwidth") => &[],
        ("add", _) => &[Verb::Connect],
        ("del", _) => &[Verb::Disconnect],
        ("lead" | "yield", _) => &[Verb::Lead],
        ("up", _) => &[Verb::MakeNetwork],
        ("down", _) => &[Verb::RemoveNetwork],
        _ => panic!("{step} is walked by no verb"),
    }
}

fn steps_of(program: &str, verbs_of: fn(&str) -> &'static [Verb]) -> Vec<(String, Verb)> {
    let names = faults::steps(program).into_iter();
    names.flat_map(|step| verbs_of(&step).iter().map(move |verb| (step.clone(), *verb))).collect()
}

fn steps() -> Vec<(String, Verb)> {
    let steps = steps_of("berthd", verbs_of);
    assert!(steps.iter().filter(|(step, _)| step.starts_with("docker_")).count() > 10, "{steps:?}");
    steps
}

/// A machine whose programs can be made to fail.
struct Node {
    machine: Machine,
    daemon: Option<Daemon>,
    engine: Engine,
    image: String,
    registry: DockerRegistry,
}

impl Node {
    async fn start() -> Self {
        let mut machine = Machine::with_faults();
        machine.config = engine::config();
        let daemon = machine.start().await;
        let image = daemon.cri().pull_image(&machine, Image::busybox()).await;
        let engine = Engine::of(&machine);
        let registry = DockerRegistry::start(&machine).await;
        Self { machine, daemon: Some(daemon), engine, image, registry }
    }

    /// Makes what a verb needs.
    async fn prepare(&self, verb: Verb) {
        match verb {
            Verb::Tag => return,
            Verb::Untag => return drop(self.ask(Verb::Tag).await.unwrap()),
            Verb::RemoveImage => return self.name_another_image().await,
            Verb::Push => {
                let path = format!("/images/{}/tag?repo={}", self.image, self.pushed());
                return drop(self.engine.post(&path, Value::Null).await);
            }
            _ => {}
        }
        if matches!(verb, Verb::Import | Verb::Load | Verb::MakeNetwork) {
            return;
        }
        if matches!(verb, Verb::RemoveNetwork | Verb::Connect | Verb::Lead | Verb::Disconnect) {
            assert_eq!(self.ask(Verb::MakeNetwork).await.unwrap().0, 201);
        }
        if verb == Verb::RemoveNetwork {
            return;
        }
        if verb != Verb::Create {
            assert_eq!(self.ask(Verb::Create).await.unwrap().0, 201);
        }
        if matches!(verb, Verb::Stop | Verb::Commit | Verb::Connect | Verb::Lead | Verb::Disconnect)
        {
            assert_eq!(self.ask(Verb::Start).await.unwrap().0, 204);
        }
        if verb == Verb::Disconnect {
            assert_eq!(self.ask(Verb::Connect).await.unwrap().0, 200);
        }
    }

    /// The name of an image that is pushed.
    fn pushed(&self) -> String {
        format!("{}/pushed:1", self.registry.host)
    }

    /// Pulls an image that has no other name than `doomed`.
    async fn name_another_image(&self) {
        let image = Image::simple(Layer::new().file("doomed", b"1"), &["true"]);
        let cri = self.daemon.as_ref().unwrap().cri();
        let name = cri.pull_image(&self.machine, image).await;
        self.engine.post(&format!("/images/{name}/tag?repo=doomed"), Value::Null).await;
        self.engine.request("DELETE", &format!("/images/{name}"), None).await;
    }

    /// The status and the answer; `None` if the connection broke.
    async fn ask(&self, verb: Verb) -> Option<(u16, Value)> {
        let script = "echo 1 > /own; trap 'exit 3' TERM; sleep 1000 & wait";
        let command = ["sh", "-c", script];
        let body = json!({ "Image": self.image, "Cmd": command, "Volumes": { "/etc": {} } });
        let tag = format!("/images/{}/tag?repo=other", self.image);
        let push = format!("/images/{}/push", self.pushed());
        let main = json!({ "Container": "main" });
        let first = json!({ "Container": "main", "EndpointConfig": { "GwPriority": 1 } });
        let (method, path, body) = match verb {
            Verb::Create => ("POST", "/containers/create?name=main", Some(body)),
            Verb::Start => ("POST", "/containers/main/start", None),
            Verb::Stop => ("POST", "/containers/main/stop", None),
            Verb::Remove => ("DELETE", "/containers/main?v=1", None),
            Verb::Tag => ("POST", tag.as_str(), None),
            Verb::Untag => ("DELETE", "/images/other", None),
            Verb::RemoveImage => ("DELETE", "/images/doomed", None),
            Verb::Commit => ("POST", "/commit?container=main&repo=made", None),
            Verb::Import => {
                return self
                    .engine
                    .send_tar("/images/create?fromSrc=-&repo=made", tar())
                    .await
                    .ok();
            }
            Verb::Load => {
                return self.engine.send_tar("/images/load?quiet=1", archive()).await.ok();
            }
            Verb::Push => ("POST", push.as_str(), None),
            Verb::MakeNetwork => ("POST", "/networks/create", Some(json!({ "Name": "net1" }))),
            Verb::RemoveNetwork => ("DELETE", "/networks/net1", None),
            Verb::Connect => ("POST", "/networks/net1/connect", Some(main)),
            Verb::Lead => ("POST", "/networks/net1/connect", Some(first)),
            Verb::Disconnect => ("POST", "/networks/net1/disconnect", Some(main)),
        };
        self.engine.try_request(method, path, body).await.ok()
    }

    /// Asks again: it is done, or was done already.
    async fn ask_again(&self, verb: Verb, step: &str) {
        let (status, answer) = self.ask(verb).await.expect("an answer");
        let may = match verb {
            Verb::Create => [201, 409],
            Verb::Start | Verb::Stop => [204, 304],
            Verb::Remove => [204, 404],
            Verb::Tag | Verb::Commit => [201, 201],
            Verb::Push => [200, 200],
            Verb::MakeNetwork => [201, 409],
            Verb::RemoveNetwork => [204, 404],
            // dockerd has these codes for what is done already.
            Verb::Connect | Verb::Lead => [200, 403],
            Verb::Disconnect => [200, 500],
            Verb::Untag | Verb::RemoveImage => [200, 404],
            Verb::Import | Verb::Load => [200, 200],
        };
        assert!(may.contains(&status), "{step}: asked again: {status} {answer}");
        if verb == Verb::Push {
            let text = answer.as_str().unwrap_or_default();
            return assert!(text.contains("\"aux\""), "{step}: {text}");
        }
        let path = match verb {
            Verb::Tag | Verb::Untag => "/images/other/json",
            Verb::RemoveImage => "/images/doomed/json",
            Verb::Commit | Verb::Import | Verb::Load => "/images/made/json",
            Verb::MakeNetwork | Verb::RemoveNetwork => "/networks/net1",
            _ => "/containers/main/json",
        };
        let (status, seen) = self.engine.request("GET", path, None).await;
        let expected = match verb {
            Verb::Create => "created",
            Verb::Start => "running",
            Verb::MakeNetwork => return assert_eq!(status, 200, "{step}: {seen}"),
            Verb::Connect | Verb::Lead | Verb::Disconnect => {
                let networks = seen["NetworkSettings"]["Networks"].as_object().unwrap();
                let address = networks.get("net1").map(|it| it["IPAddress"].as_str().unwrap());
                let is_on = address.is_some_and(|address| !address.is_empty());
                assert_eq!(is_on, verb != Verb::Disconnect, "{step}: {seen}");
                let leads = if verb == Verb::Lead { "net1" } else { "bridge" };
                let gateway = networks[leads]["Gateway"].as_str().unwrap();
                return Self::assert_gateway(&seen, gateway, step);
            }
            Verb::Stop => "exited",
            Verb::Tag | Verb::Import | Verb::Load => {
                return assert_eq!(status, 200, "{step}: {seen}");
            }
            Verb::Commit => {
                assert_eq!(status, 200, "{step}: {seen}");
                let state = self.engine.inspect("main").await["State"]["Status"].clone();
                return assert_eq!(state, "running", "{step}: it stays paused");
            }
            Verb::Remove | Verb::Untag | Verb::RemoveImage | Verb::Push | Verb::RemoveNetwork => {
                return assert_eq!(status, 404, "{step}: {seen}");
            }
        };
        assert_eq!(seen["State"]["Status"], expected, "{step}: {seen}");
        if verb == Verb::Stop {
            let code = seen["State"]["ExitCode"].as_i64().unwrap();
            assert!([3, 137].contains(&code), "{step}: exit code {code}");
        }
    }

    /// The default route of a container leads through this gateway.
    fn assert_gateway(container: &Value, gateway: &str, step: &str) {
        let path = format!("/proc/{}/net/route", container["State"]["Pid"]);
        let routes = fs::read_to_string(path).expect("the routes of a process");
        let gateway: Ipv4Addr = gateway.parse().expect("an address");
        let number = u32::from_ne_bytes(gateway.octets());
        let default = format!("\t00000000\t{number:08X}\t");
        assert!(routes.contains(&default), "{step}: {default}: {routes}");
    }

    /// Removes all that is listed. Then nothing may be left.
    async fn clean_up(&self, step: &str) {
        for container in self.engine.get("/containers/json?all=1").await.as_array().unwrap() {
            self.engine.remove(container["Id"].as_str().unwrap()).await;
        }
        self.engine.request("DELETE", "/networks/net1", None).await;
        self.engine.request("DELETE", "/images/other", None).await;
        let pushed = format!("/images/{}", self.pushed());
        self.engine.request("DELETE", &pushed, None).await;
        self.engine.request("DELETE", "/images/made", None).await;
        // The image of a first attempt, which lost its name to that of the second.
        self.engine.post("/images/prune", Value::Null).await;
        let images = self.engine.get("/images/json?all=1").await;
        assert_eq!(images.as_array().unwrap().len(), 1, "{step}: {images}");
        self.machine.assert_clean().await;
        for directory in ["root/engine/containers", "root/engine/networks", "root/volumes"] {
            let left = fs::read_dir(self.machine.path(directory)).unwrap().flatten();
            let left: Vec<_> = left.collect();
            assert!(left.is_empty(), "{step}: {left:?}");
        }
        if step == "remove_image.collect" {
            // The next collection makes up for one that fails, and none is due here.
            return;
        }
        // The layer that is left is that of the image, beside the one of images without any.
        let layers = fs::read_dir(self.machine.path("root/layers")).unwrap().flatten();
        let layers: Vec<_> = layers.map(|layer| layer.file_name()).collect();
        assert_eq!(layers.len(), 2, "{step}: {layers:?}");
    }
}

/// An image for a load, as docker saves them.
fn archive() -> Vec<u8> {
    let layer = Layer::new().file("loaded", b"1").bytes();
    let rootfs = json!({ "type": "layers", "diff_ids": [digest(&layer)] });
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs });
    let saved = json!([{ "Config": "config", "RepoTags": ["made:latest"], "Layers": ["layer"] }]);
    Layer::new()
        .file("layer", &layer)
        .file("config", config.to_string().as_bytes())
        .file("manifest.json", saved.to_string().as_bytes())
        .bytes()
}

/// Files for an import.
fn tar() -> Vec<u8> {
    Layer::new().file("imported", b"1").bytes()
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_verb_of_docker() {
    if skip_without(Capability::Faults) {
        return;
    }
    let mut node = Node::start().await;
    for (step, verb) in steps() {
        node.prepare(verb).await;
        node.machine.arm(&step, "kill");
        let first = node.ask(verb).await;
        node.machine.reached(&step).await;
        assert!(first.is_none(), "{step}: an answer by a daemon that is dead: {first:?}");
        node.daemon.take().unwrap().wait();
        node.daemon = Some(node.machine.start().await);
        node.ask_again(verb, &step).await;
        node.clean_up(&step).await;
    }
}

#[tokio::test]
async fn a_step_that_fails_is_an_error_in_dockers_form_and_leaves_nothing() {
    if skip_without(Capability::Faults) {
        return;
    }
    let node = Node::start().await;
    for (step, verb) in steps() {
        node.prepare(verb).await;
        node.machine.arm(&step, "fail");
        let (status, answer) = node.ask(verb).await.expect("an answer");
        node.machine.reached(&step).await;
        // A load tells its failure in a line of its answer.
        if status >= 300 || verb == Verb::Load {
            let message = answer["message"].as_str().or(answer["error"].as_str());
            let message = message.unwrap_or_default();
            assert!(message.contains(&format!("a test lets {step} fail")), "{step}: {answer}");
        } else if verb == Verb::Push {
            // The answer has begun before.
            let told = answer.as_str().unwrap_or_default();
            assert!(told.contains(&format!("a test lets {step} fail")), "{step}: {told}");
        } else {
            // What follows an end, or a DEL, is nobody's answer: it is in the log, and tried again.
            let goes_on = verb == Verb::Stop || step == "detach.forget";
            assert!(goes_on, "{step} failed, and the verb did not: {answer}");
        }
        node.ask_again(verb, &step).await;
        node.clean_up(&step).await;
    }
}

#[tokio::test]
async fn a_plugin_killed_at_any_step_of_a_network() {
    if skip_without(Capability::Faults) {
        return;
    }
    let node = Node::start().await;
    for (step, verb) in steps_of("berth-bridge", verbs_of_plugin) {
        node.prepare(verb).await;
        node.machine.arm(&step, "kill");
        let (status, answer) = node.ask(verb).await.expect("an answer");
        node.machine.reached(&step).await;
        // A DEL that fails is tried again, and no answer waits for it.
        assert_eq!(status >= 300, !step.starts_with("del."), "{step}: {status} {answer}");
        node.ask_again(verb, &step).await;
        node.clean_up(&step).await;
    }
}
