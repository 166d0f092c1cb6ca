//! `docker save` and `docker load`.

use std::fs;

use berth_tests::{Capability, FakeRegistry, Image, Machine, busybox, gzip, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, ready_with_cri, succeed};

/// Pulls an image as `NAME:1`, and returns its id.
fn pull(machine: &Machine, name: &str) -> String {
    let layer = busybox().file("own", name.as_bytes());
    let registry = FakeRegistry::start(machine, Image::simple(layer, &["cat", "/own"]), |_| None);
    let pulled = format!("{}/{name}:1", registry.host);
    succeed(machine, &["pull", "--quiet", &pulled]);
    let tag = format!("{name}:1");
    succeed(machine, &["tag", &pulled, &tag]);
    succeed(machine, &["rmi", &pulled]);
    succeed(machine, &["inspect", "--format", "{{.Id}}", &tag])
}

/// A file of an archive.
fn extracted(machine: &Machine, archive: &str, name: &str) -> Value {
    let text = machine.output("tar", &["--extract", "--to-stdout", "--file", archive, name]);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn what_was_saved_is_loaded_with_the_same_ids() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, cri, _) = ready_with_cri().await;
    let (one, two) = (pull(&machine, "one"), pull(&machine, "two"));
    succeed(&machine, &["tag", "one:1", "one:2"]);
    let archive = machine.path("saved.tar").display().to_string();
    succeed(&machine, &["save", "--output", &archive, "one", "two:1"]);
    let manifest = extracted(&machine, &archive, "manifest.json");
    assert_eq!(
        manifest[0]["RepoTags"],
        json!(["docker.io/library/one:1", "docker.io/library/one:2"])
    );
    let path = format!("blobs/sha256/{}", two.strip_prefix("sha256:").unwrap());
    assert_eq!(manifest[1]["Config"], path);
    let layer = |image: usize| {
        let layers = manifest[image]["Layers"].as_array().unwrap();
        layers.last().unwrap().as_str().unwrap().strip_prefix("blobs/sha256/").unwrap().to_owned()
    };
    let repositories = json!({
        "one": { "1": layer(0), "2": layer(0) },
        "two": { "1": layer(1) },
    });
    assert_eq!(extracted(&machine, &archive, "repositories"), repositories);
    // All that is there already is told, too.
    let expected = "Loaded image: one:1\nLoaded image: one:2\nLoaded image: two:1";
    assert_eq!(succeed(&machine, &["load", "--input", &archive]), expected);
    succeed(&machine, &["rmi", "one:1", "one:2", "two:1"]);
    assert!(cri.image_status(&one).await.unwrap().is_none());
    fs::write(machine.path("saved.gz"), gzip(&fs::read(&archive).unwrap())).unwrap();
    let compressed = machine.path("saved.gz").display().to_string();
    assert_eq!(succeed(&machine, &["load", "--input", &compressed]), expected);
    assert_eq!(succeed(&machine, &["inspect", "--format", "{{.Id}}", "one:2"]), one);
    // No registry has what was made here.
    let image = engine.get("/images/two:1/json").await;
    assert_eq!((&image["Id"], &image["RepoDigests"]), (&json!(two), &json!([])));
    assert_eq!(succeed(&machine, &["run", "--rm", "two:1"]), "two");
    let again = machine.path("again.tar").display().to_string();
    succeed(&machine, &["save", "--output", &again, "one", "two:1"]);
    assert!(fs::read(&archive).unwrap() == fs::read(&again).unwrap(), "the archives differ");
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_image_without_a_name_is_saved_and_loaded_by_its_id() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let id = pull(&machine, "one");
    let archive = machine.path("saved.tar").display().to_string();
    succeed(&machine, &["save", "--output", &archive, &id]);
    succeed(&machine, &["rmi", "one:1"]);
    let loaded = succeed(&machine, &["load", "--input", &archive]);
    assert_eq!(loaded, format!("Loaded image ID: {id}"));
    let listed = succeed(&machine, &["images", "--filter", "dangling=true", "--no-trunc", "-q"]);
    assert_eq!(listed, id);
    succeed(&machine, &["tag", &id, "moves:1"]);
    succeed(&machine, &["save", "--output", &archive, "moves:1"]);
    pull(&machine, "two");
    succeed(&machine, &["tag", "two:1", "moves:1"]);
    succeed(&machine, &["rmi", "two:1"]);
    let other = succeed(&machine, &["inspect", "--format", "{{.Id}}", "moves:1"]);
    let loaded = succeed(&machine, &["load", "--input", &archive]);
    let displaced = format!(
        "The image moves:1 already exists, renaming the old one with ID {other} to empty string\n\
         Loaded image: moves:1"
    );
    assert_eq!(loaded, displaced);
    let listed = succeed(&machine, &["images", "--filter", "dangling=true", "--no-trunc", "-q"]);
    assert_eq!(listed, other);
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_saved_or_loaded_says_so_and_leaves_nothing() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let archive = machine.path("saved.tar").display().to_string();
    for names in [&["nope"][..], &[&busybox, "nope"]] {
        let error = fail(&machine, &[&["save", "--output", &archive], names].concat());
        assert_eq!(error, "Error response from daemon: No such image: nope");
    }
    let path =
        format!("/images/{busybox}/get?platform={{\"os\":\"linux\",\"architecture\":\"s390x\"}}");
    let message = "no suitable export target found for platform linux/s390x";
    let answer = engine.request("GET", &path, None).await;
    assert_eq!(answer, (404, json!({ "message": message })));
    succeed(&machine, &["save", "--output", &archive, &busybox]);
    let whole = fs::read(&archive).unwrap();
    for (name, content) in [("nonsense", &b"nonsense"[..]), ("short", &whole[..whole.len() / 2])] {
        let path = machine.path(name);
        fs::write(&path, content).unwrap();
        let error = fail(&machine, &["load", "--input", &path.display().to_string()]);
        assert!(error.contains("archive: "), "{name}: {error}");
    }
    assert_eq!(engine.get("/images/json").await.as_array().unwrap().len(), 1);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_load_that_is_not_quiet_tells_how_far_its_new_layers_have_come() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let layer = busybox().file("own", &vec![7; 3 << 20]).bytes();
    let (diff_id, size) = (berth_tests::digest(&layer), layer.len());
    let tar = machine.path("tar");
    fs::write(&tar, &layer).unwrap();
    succeed(&machine, &["import", tar.to_str().unwrap(), "made:1"]);
    let archive = machine.path("saved.tar").display().to_string();
    succeed(&machine, &["save", "--output", &archive, "made:1"]);
    let saved = fs::read(&archive).unwrap();
    let last = json!({ "stream": "Loaded image: made:1\n" });
    // What is here already has nothing to tell.
    let answer = engine.send_tar("/images/load", saved.clone()).await.unwrap();
    assert_eq!(answer, (200, last.clone()));
    succeed(&machine, &["rmi", "made:1"]);
    let (_, answer) = engine.send_tar("/images/load", saved).await.unwrap();
    let lines: Vec<Value> =
        answer.as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 5, "{answer}");
    let whole = &lines[lines.len() - 2];
    let id = &diff_id.strip_prefix("sha256:").unwrap()[..12];
    assert_eq!((&whole["status"], &whole["id"]), (&json!("Loading layer"), &json!(id)));
    assert_eq!(whole["progressDetail"], json!({ "current": size, "total": size }));
    assert_eq!(lines.last(), Some(&last));
    succeed(&machine, &["rmi", "made:1"]);
    let shown = machine.on_terminal(&format!("load --input {archive}"), b"");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("Loading layer"), "{shown:?}");
    machine.assert_clean().await;
}
