//! Volumes: with names and without, filled, shared, removed, and over the ends of daemons.

use std::{fs, os::unix::fs::MetadataExt};

use berth_tests::{Capability, Daemon, Engine, Image, Machine, busybox, eventually, skip_without};
use serde_json::{Value, json};

use crate::{ready, run, succeed};

/// An image with something in `/data`, which belongs to a user and is declared as a volume.
async fn with_volume(machine: &Machine, daemon: &Daemon) -> String {
    let layer = busybox()
        .directory("data", 0o751)
        .file("data/of-image", b"it")
        .directory("data/below", 0o700)
        .symlink("data/below/out", "/etc/passwd")
        .bytes();
    let image = Image::docker(&[(layer.clone(), layer)], &json!({ "Volumes": { "/data": {} } }));
    daemon.cri().pull_image(machine, image).await
}

async fn names(engine: &Engine) -> Vec<String> {
    let volumes = engine.get("/volumes").await["Volumes"].clone();
    let name = |volume: &Value| volume["Name"].as_str().unwrap().to_owned();
    volumes.as_array().unwrap().iter().map(name).collect()
}

fn error(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.docker(arguments);
    assert!(!output.status.success(), "docker {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_named_volume_is_made_shared_listed_and_removed() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    assert_eq!(succeed(&machine, &["volume", "create", "--label", "a=b", "v1"]), "v1");
    assert_eq!(succeed(&machine, &["volume", "create", "v1"]), "v1", "it is there already");
    // One that is not there is made.
    run(&machine, &["-v", "v2:/x"], &image, "echo kept > /x/file");
    assert_eq!(run(&machine, &["-v", "v2:/y:ro"], &image, "cat /y/file"), "kept");
    let refused = run(&machine, &["-v", "v2:/y:ro"], &image, "echo no 2>&1 > /y/file || true");
    assert!(refused.contains("Read-only"), "{refused}");
    assert_eq!(succeed(&machine, &["volume", "ls", "-q"]), "v1\nv2");
    assert_eq!(succeed(&machine, &["volume", "ls", "-q", "-f", "label=a=b"]), "v1");
    daemon.kill();
    let _daemon = machine.start().await;
    let place = machine.path("root/volumes/v2/_data");
    let inspected: Value =
        serde_json::from_str(&succeed(&machine, &["volume", "inspect", "v2"])).unwrap();
    assert_eq!(inspected[0]["Mountpoint"], place.to_str().unwrap());
    assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "kept\n");
    succeed(&machine, &["create", "--name", "c1", "-v", "v1:/x", &image]);
    let mount = engine.inspect("c1").await["Mounts"][0].clone();
    let source = machine.path("root/volumes/v1/_data");
    assert_eq!(
        mount,
        json!({
            "Type": "volume", "Name": "v1", "Source": source, "Destination": "/x",
            "Driver": "local", "Mode": "z", "RW": true, "Propagation": "",
        })
    );
    let id = engine.inspect("c1").await["Id"].as_str().unwrap().to_owned();
    let said = error(&machine, &["volume", "rm", "v1"]);
    assert!(said.contains(&format!("remove v1: volume is in use - [{id}]")), "{said}");
    assert_eq!(succeed(&machine, &["volume", "ls", "-q", "-f", "dangling=true"]), "v2");
    succeed(&machine, &["rm", "-v", "c1"]);
    assert_eq!(succeed(&machine, &["volume", "rm", "v1", "v2"]), "v1\nv2");
    assert!(error(&machine, &["volume", "rm", "v1"]).contains("get v1: no such volume"));
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_empty_volume_gets_the_images_files_when_its_container_is_made() {
    let (machine, daemon, engine, _) = ready().await;
    let image = with_volume(&machine, &daemon).await;
    let bind = |binds: &[&str]| json!({ "Image": image, "Cmd": ["true"], "HostConfig": { "Binds": binds } });
    engine.create("named", bind(&["v1:/data"])).await;
    engine.create("unnamed", json!({ "Image": image, "Cmd": ["true"] })).await;
    engine.create("second", bind(&["v1:/data"])).await;
    engine.create("nocopy", bind(&["v2:/data:nocopy"])).await;
    let mount = engine.inspect("unnamed").await["Mounts"][0].clone();
    let unnamed = mount["Name"].as_str().unwrap();
    assert_eq!((unnamed.len(), &mount["Mode"]), (64, &json!("")), "{mount}");
    for name in ["v1", unnamed] {
        let data = machine.path(&format!("root/volumes/{name}/_data"));
        assert_eq!(fs::read_to_string(data.join("of-image")).unwrap(), "it", "{name}");
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o751, "{name}");
        let link = fs::read_link(data.join("below/out")).unwrap();
        assert_eq!(link.to_str(), Some("/etc/passwd"), "links are copied, and never followed");
    }
    assert!(fs::read_dir(machine.path("root/volumes/v2/_data")).unwrap().next().is_none());
    // What is there already stays, and nothing comes back.
    fs::write(machine.path("root/volumes/v1/_data/own"), "").unwrap();
    fs::remove_file(machine.path("root/volumes/v1/_data/of-image")).unwrap();
    engine.create("third", bind(&["v1:/data"])).await;
    let left = fs::read_dir(machine.path("root/volumes/v1/_data")).unwrap().count();
    assert_eq!(left, 2, "below and own");
    // Docker keeps those without a name, unless it is asked for their removal.
    for (name, query) in
        [("named", "v=1"), ("second", "v=1"), ("nocopy", ""), ("third", ""), ("unnamed", "v=1")]
    {
        let path = format!("/containers/{name}?{query}");
        assert_eq!(engine.request("DELETE", &path, None).await.0, 204);
    }
    assert_eq!(names(&engine).await, ["v1", "v2"]);
    let pruned = engine.post("/volumes/prune", Value::Null).await;
    assert_eq!(pruned["VolumesDeleted"], json!([]), "they have names");
    let all = "/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D";
    assert_eq!(engine.post(all, Value::Null).await["VolumesDeleted"], json!(["v1", "v2"]));
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_place_that_leads_out_of_the_image_copies_nothing_of_the_host() {
    let (machine, daemon, engine, _) = ready().await;
    fs::write(machine.path("secret"), "of the host").unwrap();
    let host = machine.dir.path().to_str().unwrap();
    let up = format!("{}{host}", "../".repeat(12));
    for (target, link) in [("/vol", host), ("/vol", up.as_str()), ("/vol", "/proc/self/root")] {
        let layer = busybox().symlink(target.trim_start_matches('/'), link).bytes();
        let config = json!({ "Volumes": { target: {} } });
        let image = Image::docker(&[(layer.clone(), layer)], &config);
        let image = daemon.cri().pull_image(&machine, image).await;
        let body = json!({ "Image": image, "Cmd": ["true"] });
        let (status, answer) =
            engine.request("POST", "/containers/create?name=c1", Some(body)).await;
        if status == 201 {
            let name = engine.inspect("c1").await["Mounts"][0]["Name"].clone();
            let data = machine.path(&format!("root/volumes/{}/_data", name.as_str().unwrap()));
            assert!(!data.join("secret").exists(), "{link}");
            engine.remove("c1").await;
        }
        assert!(status == 201 || status >= 400, "{answer}");
        assert_eq!(names(&engine).await, [""; 0], "{link}");
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn volumes_of_another_container_are_backed_up_and_go_with_the_last_that_uses_them() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let redis = ["run", "-d", "--name", "redis", "-v", "/data", &image, "sleep", "1000"];
    succeed(&machine, &redis);
    succeed(&machine, &["exec", "redis", "sh", "-c", "echo dump > /data/dump.rdb"]);
    let backup = machine.path("backup");
    fs::create_dir(&backup).unwrap();
    let onto = format!("{}:/backup", backup.display());
    let copy = "cp /data/dump.rdb /backup/";
    run(&machine, &["--volumes-from", "redis", "-v", &onto], &image, copy);
    assert_eq!(fs::read_to_string(backup.join("dump.rdb")).unwrap(), "dump\n");
    let read_only = "echo no 2>&1 > /data/new || true";
    let said = run(&machine, &["--volumes-from", "redis:ro"], &image, read_only);
    assert!(said.contains("Read-only"), "{said}");
    // The data container's own pattern: a second one keeps them when the first is gone.
    succeed(&machine, &["create", "--name", "heir", "--volumes-from", "redis", &image]);
    succeed(&machine, &["rm", "-f", "-v", "redis"]);
    assert_eq!(names(&engine).await.len(), 1, "the heir has it");
    succeed(&machine, &["rm", "-v", "heir"]);
    assert_eq!(names(&engine).await, [""; 0]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_volume_without_a_name_goes_with_its_rm_whatever_ends_the_daemon() {
    let (machine, daemon, engine, image) = ready().await;
    let body = json!({
        "Image": image, "Cmd": ["sleep", "1000"], "Volumes": { "/data": {} },
        "HostConfig": { "AutoRemove": true },
    });
    engine.create("c1", body).await;
    engine.start("c1").await;
    assert_eq!(names(&engine).await.len(), 1);
    daemon.kill();
    let daemon = machine.start().await;
    assert_eq!(names(&engine).await.len(), 1);
    engine.post("/containers/c1/kill", Value::Null).await;
    eventually("the removal", async || names(&engine).await.is_empty()).await;
    // What a daemon has begun to remove or to make, the next one finishes or takes away.
    let body = json!({ "Image": image, "Cmd": ["true"], "Volumes": { "/data": {} } });
    let id = engine.create("c2", body).await;
    daemon.kill();
    let directory = machine.path(&format!("root/engine/containers/{id}"));
    fs::rename(&directory, directory.with_extension("removing")).unwrap();
    let half_made = machine.path("root/volumes/.half");
    fs::create_dir(&half_made).unwrap();
    let _daemon = machine.start().await;
    assert_eq!(names(&engine).await, [""; 0]);
    assert!(!half_made.exists());
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_dockerds_words() {
    let (machine, _daemon, engine, image) = ready().await;
    let create = async |name: &str, body: Value| {
        let (status, answer) =
            engine.request("POST", &format!("/containers/create?name={name}"), Some(body)).await;
        (status, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let host = |host: Value| json!({ "Image": image, "Cmd": ["true"], "HostConfig": host });
    for (body, status, text) in [
        (host(json!({ "VolumesFrom": ["none"] })), 400, "No such container: none"),
        (
            host(json!({ "VolumesFrom": [""] })),
            400,
            "volumes-from specification cannot be an empty",
        ),
        (
            host(json!({ "VolumeDriver": "nope", "Binds": ["vol:/v"] })),
            404,
            "error looking up volume plugin nope: plugin \"nope\" not found",
        ),
        (
            json!({ "Image": image, "Cmd": ["true"], "Volumes": { "/etc/passwd": {} } }),
            500,
            "cannot mount volume over existing file, file exists /etc/passwd",
        ),
    ] {
        let (got, said) = create("c1", body).await;
        assert!(got == status && said.contains(text), "{got} {said}");
    }
    let volume = async |body: Value| {
        let (status, answer) = engine.request("POST", "/volumes/create", Some(body)).await;
        (status, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    for (body, status, text) in [
        (json!({ "Name": "a/b" }), 400, "includes invalid characters for a local volume name"),
        (json!({ "Name": "a" }), 400, "volume name is too short"),
        (json!({ "Name": "..", }), 400, "includes invalid characters"),
        (json!({ "Name": "vv", "Driver": "nope" }), 404, "plugin \"nope\" not found"),
    ] {
        let (got, said) = volume(body).await;
        assert!(got == status && said.contains(text), "{got} {said}");
    }
    // What an image declares without a meaning is no obstacle.
    let odd = json!({ "rel": {}, "/": {}, "[x]": {} });
    let id = engine.create("odd", json!({ "Image": image, "Cmd": ["true"], "Volumes": odd })).await;
    let mounts = engine.inspect(&id).await["Mounts"].clone();
    let mut places: Vec<_> = mounts.as_array().unwrap().iter().map(|m| &m["Destination"]).collect();
    places.sort_by_key(|place| place.to_string());
    assert_eq!(places, [&json!("/[x]"), &json!("/rel")]);
    engine.start("odd").await;
    assert_eq!(engine.wait("odd").await, 0);
    engine.remove("odd").await;
    // What is no volume stays, whatever it is called.
    let own = machine.path("root/volumes/own");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("kept"), "").unwrap();
    let (status, said) = volume(json!({ "Name": "own" })).await;
    assert!(status == 500 && own.join("kept").exists(), "{status} {said}");
    fs::remove_dir_all(own).unwrap();
    assert_eq!(fs::read_dir(machine.path("root/volumes")).unwrap().count(), 0);
    assert_eq!(names(&engine).await, [""; 0]);
    machine.assert_clean().await;
}
