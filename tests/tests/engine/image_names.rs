//! `docker tag`, `docker rmi` and `docker image prune`: names of images, and what their removal
//! leaves to containers of both kinds.

use berth_tests::{Capability, Engine, FakeRegistry, Image, Machine, container, pod, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready_with_cri, succeed};

/// Pulls an image of its own, and returns its name, its id and the beginning of that.
fn pull(machine: &Machine, content: &str) -> (FakeRegistry, String, String, String) {
    let layer = berth_tests::busybox().file("own", content.as_bytes());
    let registry = FakeRegistry::start(machine, Image::simple(layer, &["sh"]), |_| None);
    let name = format!("{}/own:1", registry.host);
    succeed(machine, &["pull", "--quiet", &name]);
    let id = succeed(machine, &["inspect", "--format", "{{.Id}}", &name]);
    let short = id["sha256:".len()..][..12].to_owned();
    (registry, name, id, short)
}

/// The events of images since the start, as action and name.
async fn events(engine: &Engine) -> Vec<String> {
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let until = format!("{}.{:09}", until.as_secs(), until.subsec_nanos());
    let path = format!("/events?since=1&until={until}&filters={{\"type\":[\"image\"]}}");
    let (_, text) = engine.request("GET", &path, None).await;
    let lines = match text {
        Value::String(text) => text,
        one => one.to_string(),
    };
    let event = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&event["status"], &event["id"]), (&event["Action"], &event["Actor"]["ID"]));
        format!("{} {}", event["Action"], event["Actor"]["Attributes"]["name"]).replace('"', "")
    };
    lines.lines().map(event).collect()
}

/// Ids come and go: a name that happens to be the beginning of one means its image all the same.
#[tokio::test]
async fn a_name_is_no_beginning_of_an_id() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _cri, _) = ready_with_cri().await;
    let (_registry, name, id, _) = pull(&machine, "1");
    let (_other_registry, _, other_id, other_short) = pull(&machine, "2");
    let hex = &other_short[..4];
    let inspect =
        |name: &str| succeed(&machine, &["image", "inspect", "--format", "{{.Id}}", name]);
    assert_eq!(inspect(hex), other_id);
    succeed(&machine, &["tag", &name, hex]);
    assert_eq!(inspect(hex), id);
    assert_eq!(inspect(&other_short), other_id);
    assert_eq!(succeed(&machine, &["rmi", hex]), format!("Untagged: {hex}:latest"));
    assert_eq!(inspect(hex), other_id);
}

#[tokio::test]
async fn names_are_given_and_taken_away_until_the_image_goes() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, cri, _) = ready_with_cri().await;
    let (_registry, name, id, short) = pull(&machine, "1");
    succeed(&machine, &["tag", &name, "q"]);
    succeed(&machine, &["tag", &short, "q:z"]);
    // The other edge has the same names.
    let tags = cri.image_status(&id).await.unwrap().unwrap().repo_tags;
    assert_eq!(tags, [&name, "docker.io/library/q:latest", "docker.io/library/q:z"]);
    let refused = format!(
        "Error response from daemon: conflict: unable to delete {short} (must be forced) - image \
         is referenced in multiple repositories"
    );
    assert_eq!(fail(&machine, &["rmi", &short]), refused);
    let untagged = succeed(&machine, &["rmi", &name]);
    let lines: Vec<&str> = untagged.lines().collect();
    let repository = name.rsplit_once(':').unwrap().0;
    assert_eq!(lines[0], format!("Untagged: {name}"));
    assert!(lines[1].starts_with(&format!("Untagged: {repository}@sha256:")), "{untagged}");
    assert_eq!(lines.len(), 2, "{untagged}");
    assert_eq!(succeed(&machine, &["rmi", "q"]), "Untagged: q:latest");
    let removed = succeed(&machine, &["rmi", &short]);
    let lines: Vec<&str> = removed.lines().collect();
    assert_eq!(lines[..2], ["Untagged: q:z", &format!("Deleted: {id}")]);
    assert!(lines[2].starts_with("Deleted: sha256:") && lines.len() == 3, "{removed}");
    assert!(cri.image_status(&id).await.unwrap().is_none());
    let happened = events(&engine).await;
    let of_id = |action: &str| format!("{action} {id}");
    let expected = [
        "tag q:latest".to_owned(),
        "tag q:z".to_owned(),
        of_id("untag"),
        of_id("untag"),
        of_id("untag"),
        of_id("delete"),
    ];
    assert_eq!(happened[1..], expected, "{happened:?}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_a_name_is_refused_in_dockerds_words() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _, image) = ready_with_cri().await;
    for (arguments, message) in [
        (&["tag", "nope", "x:1"][..], "No such image: nope:latest"),
        (&["rmi", "nope"], "No such image: nope:latest"),
        (&["rmi", "000000"], "No such image: 000000:latest"),
        (
            &["rmi", "UPPER"],
            "invalid reference format: repository name (library/UPPER) must be lowercase",
        ),
    ] {
        let message = format!("Error response from daemon: {message}");
        assert_eq!(fail(&machine, arguments), message, "{arguments:?}");
    }
    let upper = "invalid reference format: repository name (library/UPPER) must be lowercase";
    let ambiguous = "refusing to create an ambiguous tag using digest algorithm as name";
    for (method, path, status, answer) in [
        ("POST", "tag?repo=UPPER&tag=1", 400, json!({ "message": upper })),
        ("POST", "tag?repo=q&tag=b@d", 400, json!({ "message": "invalid tag format" })),
        ("POST", "tag?repo=sha256&tag=x", 400, json!({ "message": ambiguous })),
        ("POST", "tag?repo=&tag=", 200, Value::Null),
        ("POST", "tag?repo=q:z&tag=r", 201, Value::Null),
    ] {
        let answered = engine.request(method, &format!("/images/{image}/{path}"), None).await;
        assert_eq!(answered, (status, answer), "{path}");
    }
    assert_eq!(succeed(&machine, &["rmi", "q:r"]), "Untagged: q:r");
    let blank = engine.request("DELETE", "/images/", None).await;
    assert_eq!(blank, (400, json!({ "message": "image name cannot be blank" })));
    machine.assert_clean().await;
}

#[tokio::test]
async fn containers_keep_their_image_and_its_layers() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, mut daemon, engine, cri, _) = ready_with_cri().await;
    let (_registry, name, id, short) = pull(&machine, "kept");
    let created = succeed(&machine, &["create", "--name", "user", &name, "cat", "/own"]);
    let user = &created[..12];
    let error = |text: String| format!("Error response from daemon: {text}");
    let must = format!(
        "conflict: unable to remove repository reference \"{name}\" (must force) - container \
         {user} is using its referenced image {short}"
    );
    assert_eq!(fail(&machine, &["rmi", &name]), error(must));
    let stopped = format!(
        "conflict: unable to delete {short} (must be forced) - image is being used by stopped \
         container {user}"
    );
    assert_eq!(fail(&machine, &["rmi", &short]), error(stopped));
    let removed = succeed(&machine, &["rmi", "--force", &name]);
    assert!(!removed.contains("Deleted"), "{removed}");
    let kept = fail(&machine, &["rmi", "--force", &short]);
    assert!(kept.contains("(cannot be forced)"), "{kept}");
    // The other edge takes the name, but not the image.
    succeed(&machine, &["tag", &short, "other"]);
    cri.remove_image(&id).await.unwrap();
    assert!(cri.image_status(&id).await.unwrap().unwrap().repo_tags.is_empty());
    daemon.kill();
    daemon = machine.start().await;
    assert_eq!(succeed(&machine, &["start", "--attach", "user"]), "kept");
    engine.remove("user").await;

    succeed(&machine, &["pull", "--quiet", &name]);
    let running = engine.create("runs", json!({ "Image": name, "Cmd": ["sleep", "1000"] })).await;
    engine.start("runs").await;
    let runs = format!(
        "conflict: unable to delete {short} (cannot be forced) - image is being used by running \
         container {}",
        &running[..12]
    );
    assert_eq!(fail(&machine, &["rmi", "--force", &short]), error(runs));
    let untagged = succeed(&machine, &["rmi", "--force", &name]);
    assert!(!untagged.contains("Deleted"), "{untagged}");
    // Now it has no name, also after a restart.
    daemon.kill();
    let _daemon = machine.start().await;
    let listed = succeed(&machine, &["images", "--filter", "dangling=true", "--no-trunc", "-q"]);
    assert_eq!(listed, id);
    engine.remove("runs").await;
    let pruned = succeed(&machine, &["image", "prune", "--force"]);
    assert!(pruned.contains(&format!("deleted: {id}")), "{pruned}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_image_that_a_pod_uses_is_left_alone() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, cri, _) = ready_with_cri().await;
    let (_registry, name, id, short) = pull(&machine, "pod");
    let sandbox = cri.run_pod(pod(&machine, "web")).await.unwrap();
    let running = cri.run(&sandbox, container("main", &id, "sleep 1000")).await.unwrap();
    let message = format!(
        "Error response from daemon: conflict: unable to delete {short} (cannot be forced) - image \
         is being used by running container {} of pod test/web",
        &running[..12]
    );
    assert_eq!(fail(&machine, &["rmi", "--force", &short]), message);
    let path = "/images/prune?filters={\"dangling\":[\"false\"]}";
    let pruned = engine.post(path, Value::Null).await;
    assert!(!pruned.to_string().contains(&id), "{pruned}");
    assert!(cri.image_status(&name).await.unwrap().is_some());
    cri.remove_pod(&sandbox).await.unwrap();
    let removed = succeed(&machine, &["rmi", &short]);
    assert!(removed.contains(&format!("Deleted: {id}")), "{removed}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn prune_takes_what_has_no_tag_or_what_nobody_uses() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, cri, busybox) = ready_with_cri().await;
    let (_one, first, first_id, _) = pull(&machine, "first");
    let (_two, second, second_id, _) = pull(&machine, "second");
    succeed(&machine, &["tag", &first, "moves:1"]);
    succeed(&machine, &["rmi", &first]);
    succeed(&machine, &["tag", &second, "moves:1"]);
    let listed = succeed(&machine, &["images", "--filter", "dangling=true", "--no-trunc", "-q"]);
    assert_eq!(listed, first_id);
    for (filters, message) in [
        ("{\"nope\":[\"1\"]}", "invalid filter 'nope'"),
        ("{\"dangling\":[\"x\"]}", "invalid filter 'dangling=[x]'"),
        ("{\"until\":[\"x\"]}", "failed to parse value as time or duration: \"x\""),
    ] {
        let path = format!("/images/prune?filters={filters}");
        let (status, answer) = engine.request("POST", &path, None).await;
        assert_eq!(answer, json!({ "message": message }));
        assert_eq!(status, if filters.contains("until") { 500 } else { 400 });
    }
    let none = succeed(&machine, &["image", "prune", "--force", "--filter", "label=nope"]);
    assert_eq!(none, "Total reclaimed space: 0B");
    let pruned = engine.post("/images/prune", Value::Null).await;
    assert_eq!(pruned["ImagesDeleted"][0], json!({ "Deleted": first_id }));
    assert!(pruned["SpaceReclaimed"].as_u64().unwrap() > 1 << 16, "{pruned}");
    let used = engine.create("uses", json!({ "Image": busybox, "Cmd": ["true"] })).await;
    let pruned = succeed(&machine, &["image", "prune", "--all", "--force"]);
    assert!(pruned.contains(&format!("deleted: {second_id}")), "{pruned}");
    assert!(pruned.contains("untagged: moves:1"), "{pruned}");
    assert_eq!(cri.images().await.len(), 1);
    engine.remove(&used).await;
    machine.assert_clean().await;
}
