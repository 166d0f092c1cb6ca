//! `docker push` to Debian's docker-registry.

use std::{
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use berth_tests::{
    BrokenLink, Capability, DockerRegistry, Engine, FakeRegistry, Image, Layer, Machine, Request,
    Response, busybox, digest, engine, gzip, ready_with, skip_without,
};
use serde_json::{Value, json};

use crate::{fail, ready, ready_with_cri, succeed};

/// Bytes that do not compress, and are the same in each run.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// An image of two layers.
fn two_layers() -> Image {
    let layers = [busybox(), Layer::new().file("noise", &noise(3 << 20, 7))];
    let layers = layers.map(|layer| {
        let tar = layer.bytes();
        (tar.clone(), gzip(&tar))
    });
    Image::new(&layers, &json!({ "Cmd": ["true"] }))
}

/// Brings an image here that no registry knows, as `NAME:1`.
fn load(machine: &Machine, image: &Image, name: &str) {
    let registry = FakeRegistry::start(machine, image.clone(), |_| None);
    let pulled = format!("{}/{name}:1", registry.host);
    succeed(machine, &["pull", "--quiet", &pulled]);
    let tag = format!("{name}:1");
    succeed(machine, &["tag", &pulled, &tag]);
    let archive = machine.path("loaded.tar").display().to_string();
    succeed(machine, &["save", "--output", &archive, &tag]);
    succeed(machine, &["rmi", &pulled, &tag]);
    succeed(machine, &["load", "--quiet", "--input", &archive]);
}

fn short(digest: &str) -> &str {
    &digest["sha256:".len()..][..12]
}

/// The lines of a push that has succeeded, but for those about bytes.
async fn push(engine: &Engine, path: &str) -> Vec<Value> {
    let (status, answer) = engine.request("POST", &format!("/images/{path}"), None).await;
    assert_eq!(status, 200, "{answer}");
    let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["status"] != "Pushing").collect()
}

/// The manifest that a registry has under a name, and its digest.
fn manifest(machine: &Machine, name: &str) -> (Value, String) {
    let source = format!("docker://{name}");
    let raw = ["inspect", "--raw", "--tls-verify=false", &source];
    let text = machine.output("skopeo", &raw);
    (serde_json::from_str(&text).unwrap(), digest(text.as_bytes()))
}

#[tokio::test]
async fn what_was_pushed_is_pulled_with_the_same_ids() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, cri, _) = ready_with_cri().await;
    let registry = DockerRegistry::start(&machine).await;
    let image = two_layers();
    load(&machine, &image, "made");
    let (one, two) = (format!("{}/a/b:1", registry.host), format!("{}/c/d:2", registry.host));
    succeed(&machine, &["tag", "made:1", &one]);
    let pushed = succeed(&machine, &["push", &one]);
    let config = engine.get("/images/made:1/json").await;
    let layers: Vec<&str> = config["RootFS"]["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|diff_id| short(diff_id.as_str().unwrap()))
        .collect();
    let (document, manifest_digest) = manifest(&machine, &one);
    let size = serde_json::to_vec_pretty(&document).unwrap().len();
    let lines: Vec<&str> = pushed.lines().collect();
    let repository = one.trim_end_matches(":1");
    let head = [
        format!("The push refers to repository [{repository}]"),
        format!("{}: Preparing", layers[1]),
        format!("{}: Preparing", layers[0]),
    ];
    assert_eq!(lines[..3], head, "{pushed}");
    for layer in &layers {
        assert!(lines.contains(&format!("{layer}: Pushed").as_str()), "{pushed}");
    }
    let last = lines.last().unwrap();
    assert!(last.starts_with(&format!("1: digest: {manifest_digest} size: ")), "{pushed}");
    assert!(size > 500, "{document}");
    assert_eq!(document["config"]["digest"], image.id);
    let media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    assert_eq!(document["layers"][1]["mediaType"], media_type);

    // It is all there, under that tag and under any other one.
    let exists: Vec<Value> = push(&engine, &format!("{one}/push")).await;
    let of_layer = |index: usize, status: &str| json!({ "status": status, "progressDetail": {}, "id": layers[index] });
    assert_eq!(exists[1..3], [of_layer(1, "Preparing"), of_layer(0, "Preparing")]);
    assert!(exists.contains(&of_layer(0, "Layer already exists")), "{exists:?}");
    let aux = exists.last().unwrap()["aux"].clone();
    assert_eq!((&aux["Tag"], &aux["Digest"]), (&json!("1"), &json!(manifest_digest)));
    succeed(&machine, &["tag", "made:1", &two]);
    let mounted = succeed(&machine, &["push", &two]);
    for layer in &layers {
        assert!(mounted.contains(&format!("{layer}: Mounted from a/b")), "{mounted}");
    }
    assert_eq!(manifest(&machine, &two), (document, manifest_digest.clone()));

    // All tags of a repository.
    let other = format!("{repository}:other");
    succeed(&machine, &["tag", "made:1", &other]);
    let all = succeed(&machine, &["push", "--all-tags", repository]);
    assert!(all.contains("1: digest: ") && all.contains("other: digest: "), "{all}");
    let inspected = engine.get("/images/made:1/json").await;
    let by_digest = |name: &str| format!("{}@{manifest_digest}", name.rsplit_once(':').unwrap().0);
    assert_eq!(inspected["RepoDigests"], json!([by_digest(&one), by_digest(&two)]));

    // Pulled again, it is the same.
    succeed(&machine, &["rmi", "--force", &image.id]);
    let pulled = succeed(&machine, &["pull", &two]);
    assert!(pulled.contains(&format!("Digest: {manifest_digest}")), "{pulled}");
    let status = cri.image_status(&two).await.unwrap().unwrap();
    assert_eq!(status.id, image.id);
    succeed(&machine, &["run", "--rm", &two]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_push_is_an_event_and_survives_a_restart() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, _) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    load(&machine, &two_layers(), "made");
    let name = format!("{}/a/b:1", registry.host);
    succeed(&machine, &["tag", "made:1", &name]);
    succeed(&machine, &["push", "--quiet", &name]);
    let filters = "{\"event\":[\"push\"]}";
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    let event = engine.get(&format!("/events?since=1&until={until}&filters={filters}")).await;
    let actor = &event["Actor"];
    let repository = name.trim_end_matches(":1");
    assert_eq!(actor, &json!({ "ID": name, "Attributes": { "name": repository } }));
    // Nobody compresses twice: what the layers had become is remembered without their image's names.
    succeed(&machine, &["rmi", &name]);
    succeed(&machine, &["tag", "made:1", &name]);
    daemon.kill();
    let _daemon = machine.start().await;
    let again = push(&engine, &format!("{name}/push")).await;
    let exist = again.iter().filter(|line| line["status"] == "Layer already exists").count();
    assert_eq!(exist, 2, "{again:?}");
}

#[tokio::test]
async fn what_was_pulled_keeps_its_digest() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    let image = two_layers();
    let source = registry.push(&machine, "source/of", "1", &image);
    succeed(&machine, &["pull", "--quiet", &source]);
    let target = format!("{}/target:1", registry.host);
    succeed(&machine, &["tag", &source, &target]);
    let pushed = succeed(&machine, &["push", &target]);
    assert_eq!(pushed.matches(": Mounted from source/of").count(), 2, "{pushed}");
    let own = digest(&image.manifest);
    assert!(
        pushed.contains(&format!("1: digest: {own} size: {}", image.manifest.len())),
        "{pushed}"
    );
    assert_eq!(manifest(&machine, &target).1, own);
}

#[tokio::test]
async fn a_registry_with_a_password_gets_it_from_the_client() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, busybox) = ready().await;
    let registry = DockerRegistry::start_with_password(&machine).await;
    let name = format!("{}/a/b:1", registry.host);
    succeed(&machine, &["tag", &busybox, &name]);
    assert_eq!(fail(&machine, &["push", &name]), "no basic auth credentials");
    succeed(&machine, &["login", "--username", "u", "--password", "p", &registry.host]);
    let pushed = succeed(&machine, &["push", &name]);
    assert!(pushed.contains(": Pushed"), "{pushed}");
    succeed(&machine, &["logout", &registry.host]);
    assert_eq!(fail(&machine, &["push", &name]), "no basic auth credentials");
}

#[tokio::test]
async fn a_push_that_breaks_off_is_tried_again() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    load(&machine, &two_layers(), "made");
    let link = BrokenLink::start(&machine, &registry.host, 1 << 20, 1);
    let name = format!("{}/a/b:1", link.host);
    succeed(&machine, &["tag", "made:1", &name]);
    let lines = push(&engine, &format!("{name}/push")).await;
    assert!(lines.iter().any(|line| line["status"] == "Retrying in 1 second"), "{lines:?}");
    assert!(lines.last().unwrap()["aux"]["Digest"].is_string(), "{lines:?}");
    assert_eq!(link.left(), 0);
    let direct = format!("{}/a/b:1", registry.host);
    let (document, _) = manifest(&machine, &direct);
    assert_eq!(document["layers"].as_array().unwrap().len(), 2);
    // What is there is whole.
    let copy = format!("dir:{}", machine.path("copy").display());
    let source = format!("docker://{direct}");
    machine.output("skopeo", &["copy", "--src-tls-verify=false", &source, &copy]);
}

/// A registry that keeps what has come of an upload that breaks off.
fn keeps_what_has_come(received: &Mutex<Vec<u8>>, request: &Request) -> Option<Response> {
    let location = ("location".to_owned(), "/v2/a/b/blobs/uploads/1".to_owned());
    let answer = |status, headers| Some(Response { status, headers, ..Response::default() });
    let mut received = received.lock().unwrap();
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v2/") => answer(200, Vec::new()),
        ("HEAD", _) => answer(404, Vec::new()),
        ("POST", _) => answer(202, vec![location]),
        ("PATCH", _) => {
            received.extend_from_slice(&request.bytes);
            answer(202, vec![location])
        }
        ("GET", _) => {
            let range = format!("0-{}", received.len() - 1);
            answer(204, vec![location, ("range".to_owned(), range)])
        }
        _ => answer(201, Vec::new()),
    }
}

#[tokio::test]
async fn a_push_that_breaks_off_goes_on_with_what_the_registry_lacks() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let image = Image::simple(Layer::new().file("noise", &noise(3 << 20, 9)), &["true"]);
    load(&machine, &image, "made");
    let received = Arc::<Mutex<Vec<u8>>>::default();
    let kept = received.clone();
    let registry =
        FakeRegistry::start(&machine, image, move |request| keeps_what_has_come(&kept, request));
    let link = BrokenLink::start(&machine, &registry.host, 1 << 20, 2);
    let name = format!("{}/a/b:1", link.host);
    succeed(&machine, &["tag", "made:1", &name]);
    let lines = push(&engine, &format!("{name}/push")).await;
    let retries = lines.iter().filter(|line| line["status"] == "Retrying in 1 second").count();
    assert!(retries >= 2 && link.left() == 0, "{lines:?}");
    let requests = registry.requests();
    let of = |method: &str| {
        let of = requests.iter().filter(|request| request.method == method);
        of.map(|request| request.path.as_str()).collect::<Vec<_>>()
    };
    // One upload for the layer, which was sent in three parts, and one for the config.
    assert_eq!((of("POST").len(), of("PATCH").len()), (2, 3));
    let blob = digest(&received.lock().unwrap()).replace(':', "%3A");
    assert!(of("PUT").iter().any(|path| path.ends_with(&format!("digest={blob}"))));
}

#[tokio::test]
async fn layers_are_compressed_by_zstd_where_that_is_configured() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let config = format!("push_compression = \"zstd\"\n{}", engine::config());
    let (machine, _daemon, _cri, _) = ready_with(&config).await;
    let registry = DockerRegistry::start(&machine).await;
    load(&machine, &two_layers(), "made");
    let name = format!("{}/a/b:1", registry.host);
    succeed(&machine, &["tag", "made:1", &name]);
    succeed(&machine, &["push", &name]);
    let (document, _) = manifest(&machine, &name);
    assert_eq!(document["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    assert_eq!(document["layers"][0]["mediaType"], media_type);
    succeed(&machine, &["rmi", &name, "made:1"]);
    succeed(&machine, &["run", "--rm", &name]);
}

#[tokio::test]
async fn what_cannot_be_pushed_is_told_in_the_words_of_dockerd() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, busybox) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    let known = format!("{}/a/b:1", registry.host);
    let repository = known.trim_end_matches(":1");
    succeed(&machine, &["tag", &busybox, &known]);
    let nothing = format!("sha256:{}", "0".repeat(64));
    for (path, message) in [
        (format!("{repository}/push?tag=2"), format!("tag does not exist: {repository}:2")),
        (
            "nope/push?tag=2".to_owned(),
            "An image does not exist locally with the tag: nope".to_owned(),
        ),
        (format!("{repository}@{nothing}/push"), "cannot push a digest reference".to_owned()),
    ] {
        let lines = push(&engine, &path).await;
        let failed = json!({ "errorDetail": { "message": message }, "error": message });
        assert_eq!(lines.last().unwrap(), &failed, "{path}");
    }
    let other = "{\"os\":\"linux\",\"architecture\":\"s390x\"}";
    let path = format!("/images/{repository}/push?tag=1&platform={other}");
    let (status, answer) = engine.request("POST", &path, None).await;
    let message = answer["message"].as_str().unwrap();
    assert!(
        status == 404 && message.contains("does not match the specified platform"),
        "{message}"
    );
    for (path, message) in [
        (
            "UP/push?tag=1",
            "invalid reference format: repository name (library/UP) must be lowercase",
        ),
        ("a/push?tag=b%20c", "invalid tag format"),
    ] {
        let answer = engine.request("POST", &format!("/images/{path}"), None).await;
        assert_eq!(answer, (400, json!({ "message": message })));
    }
    let away = "127.0.0.1:1/a:1";
    succeed(&machine, &["tag", &busybox, away]);
    assert!(fail(&machine, &["push", away]).contains("127.0.0.1:1"));
}
