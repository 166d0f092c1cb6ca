//! `docker images` with its filters, and in the forms that old clients know.

use std::fs;

use berth_tests::{Capability, Layer, Machine, busybox, digest, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, succeed};

/// Loads an image with these labels that was made at this time, as `NAME:1`.
fn load(machine: &Machine, name: &str, created: &str, labels: &Value) {
    let layers = [busybox().bytes(), Layer::new().file("own", name.as_bytes()).bytes()];
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": created,
        "config": { "Cmd": ["sh"], "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": layers.each_ref().map(|layer| digest(layer)) },
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [format!("{name}:1")],
        "Layers": ["busybox.tar", "own.tar"],
    }]);
    let archive = Layer::new()
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("config.json", config.to_string().as_bytes())
        .file("busybox.tar", &layers[0])
        .file("own.tar", &layers[1]);
    let path = machine.path("archive.tar");
    fs::write(&path, archive.bytes()).unwrap();
    succeed(machine, &["load", "--quiet", "--input", &path.display().to_string()]);
}

#[tokio::test]
async fn filters_choose_by_name_label_and_age() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    load(&machine, "old", "2001-01-01T00:00:00Z", &json!({ "a": "1" }));
    load(&machine, "x/new", "2002-01-01T00:00:00Z", &json!({ "a": "2" }));
    succeed(&machine, &["tag", "old:1", "old:2"]);
    for (filters, expected) in [
        (&["reference=old"][..], "old:1 old:2"),
        (&["reference=old:2"], "old:2"),
        (&["reference=*:1"], "old:1"),
        (&["reference=*/n[a-f]w"], "x/new:1"),
        (&["reference=old:1", "reference=x/*"], "old:1 x/new:1"),
        (&["reference=nope"], ""),
        (&["label=a"], "old:1 old:2 x/new:1"),
        (&["label=a=2"], "x/new:1"),
        (&["before=x/new:1"], "old:1 old:2"),
        (&["since=old:1", "label=a"], "x/new:1"),
        (&["until=2001-06-01T00:00:00Z"], "old:1 old:2"),
        (&["dangling=true"], ""),
    ] {
        let mut arguments = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        filters.iter().for_each(|filter| arguments.extend(["--filter", filter]));
        let mut listed: Vec<String> =
            succeed(&machine, &arguments).lines().map(str::to_owned).collect();
        listed.sort_unstable();
        // Busybox has no labels, and its time is none.
        listed.retain(|name| !name.contains("127.0.0.1"));
        assert_eq!(listed.join(" "), expected, "{filters:?}");
    }
    for (filter, message) in [
        ("reference=[", "syntax error in pattern"),
        ("before=nope", "No such image: nope:latest"),
        ("nope=1", "invalid filter 'nope'"),
        ("until=xx", "failed to parse value as time or duration: \"xx\""),
        ("dangling=yes", "invalid filter 'dangling=[yes]'"),
    ] {
        let error = fail(&machine, &["images", "--filter", filter]);
        assert_eq!(error, format!("Error response from daemon: {message}"));
    }
    let shared = engine.get("/images/json?shared-size=1").await;
    let all = shared.as_array().unwrap();
    let sizes =
        |image: &Value| (image["Size"].as_i64().unwrap(), image["SharedSize"].as_i64().unwrap());
    assert!(all.iter().map(sizes).all(|(size, shared)| 0 < shared && shared <= size), "{shared}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn old_clients_see_what_they_know() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let container = engine.create("uses", json!({ "Image": busybox, "Cmd": ["true"] })).await;
    let new = &engine.get("/images/json").await[0];
    assert_eq!((&new["Containers"], &new["VirtualSize"]), (&json!(1), &json!(null)));
    let old = &engine.get("/v1.42/images/json").await[0];
    assert_eq!((&old["Containers"], &old["VirtualSize"]), (&json!(-1), &new["Size"]));
    succeed(&machine, &["rmi", "--force", &busybox]);
    let new = &engine.get("/images/json").await[0];
    assert_eq!((&new["RepoTags"], &new["RepoDigests"]), (&json!([]), &json!([])));
    let old = &engine.get("/v1.42/images/json").await[0];
    let none = (&json!(["<none>:<none>"]), &json!(["<none>@<none>"]));
    assert_eq!((&old["RepoTags"], &old["RepoDigests"]), none);
    let shown =
        succeed(&machine, &["images", "--digests", "--format", "{{.Repository}} {{.Digest}}"]);
    assert_eq!(shown, "<none> <none>");
    engine.remove(&container).await;
    machine.assert_clean().await;
}
