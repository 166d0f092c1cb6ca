//! `docker pull`, and what is shown of images.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use berth_tests::{Capability, FakeRegistry, Image, Response, busybox, skip_without};
use serde_json::json;

use crate::ready;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_pull_shows_its_layers_and_is_made_with_the_credentials_of_the_client() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let image = Image::simple(busybox(), &["true"]);
    let registry = FakeRegistry::start(&machine, image, |request| {
        let known = request.header("authorization") == Some("Basic dTpw");
        let headers = vec![("www-authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
        (!known).then(|| Response { status: 401, headers, ..Response::default() })
    });
    let name = format!("{}/tools/box:1", registry.host);
    let path = format!("/images/create?fromImage={}/tools/box&tag=1", registry.host);
    let (status, answer) = engine.request("POST", &path, None).await;
    // 401 would make the CLI ask for a password.
    assert_eq!(status, 500, "{answer}");
    let refused = machine.docker(&["pull", &name]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(text(&refused.stderr).starts_with("Error response from daemon: "), "{refused:?}");
    let config = machine.path("docker-config");
    fs::create_dir_all(&config).unwrap();
    let auths = json!({ "auths": { &registry.host: { "auth": "dTpw" } } });
    fs::write(config.join("config.json"), auths.to_string()).unwrap();

    let pulled = text(&machine.docker(&["pull", &name]).stdout);
    let lines: Vec<&str> = pulled.lines().collect();
    assert_eq!(lines[0], "1: Pulling from tools/box", "{pulled}");
    let (layer, _) = lines[1].split_once(": ").unwrap();
    assert!(layer.len() == 12 && layer.bytes().all(|byte| byte.is_ascii_hexdigit()), "{pulled}");
    // The image of this machine has the same layer.
    assert_eq!(lines[1], format!("{layer}: Already exists"), "{pulled}");
    assert!(lines[2].starts_with("Digest: sha256:"), "{pulled}");
    assert_eq!(lines[3], format!("Status: Downloaded newer image for {name}"));
    let again = text(&machine.docker(&["pull", &name]).stdout);
    assert!(again.contains(&format!("Status: Image is up to date for {name}")), "{again}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let until = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let path = format!("/events?since=1&until={until}&filters={{\"type\":[\"image\"]}}");
    let (_, events) = engine.request("GET", &path, None).await;
    // The name is the actor, also in the form of old clients.
    assert_eq!(events.to_string().matches(&name).count(), 4, "{events}");

    let platform = machine.docker(&["pull", "--platform", "linux/s390x", &name]);
    assert!(text(&platform.stderr).contains("and none for linux/s390x"), "{platform:?}");
    let wrong = engine.request("POST", "/images/create?fromImage=UPPER", None).await;
    let message = "invalid reference format: repository name (library/UPPER) must be lowercase";
    assert_eq!(wrong, (400, json!({ "message": message })));
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_layer_that_is_new_goes_through_its_steps() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let layer = berth_tests::Layer::new().file("new", &vec![7; 2 << 20]);
    let registry = FakeRegistry::start(&machine, Image::simple(layer, &["true"]), |_| None);
    let name = format!("{}/new:1", registry.host);
    let pulled = text(&machine.docker(&["pull", &name]).stdout);
    let steps = ["Pulling fs layer", "Download complete", "Pull complete"];
    let found: Vec<&str> = pulled
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(_, step)| steps.into_iter().find(|known| *known == step))
        .collect();
    assert_eq!(found, steps, "{pulled}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn images_are_shown_with_their_history_and_what_is_not_made_yet_says_so() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let history = engine.get(&format!("/images/{image}/history")).await;
    assert!(history.is_array(), "{history}");
    let config = &engine.get(&format!("/images/{image}/json")).await["Config"];
    assert!(config.get("Hostname").is_none() && config["Env"].is_array(), "{config}");
    let config = &engine.get(&format!("/v1.43/images/{image}/json")).await["Config"];
    assert_eq!(config["Hostname"], "");
    for (arguments, message) in [
        (&["history", "nope"][..], "No such image: nope:latest"),
        (&["volume", "inspect", "x"], "get x: no such volume"),
        (&["swarm", "init"], "berth has no swarm mode"),
    ] {
        let output = machine.docker(arguments);
        assert!(!output.status.success(), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {output:?}");
    }
    machine.assert_clean().await;
}
