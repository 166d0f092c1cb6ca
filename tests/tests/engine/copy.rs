//! `docker cp` and `docker export`, and what containers try against them.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixStream,
    },
    process::{Command, Output, Stdio},
};

use berth_tests::{Capability, Engine, Image, Machine, busybox, skip_without};
use serde_json::json;

use crate::ready;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the docker CLI, which must succeed.
fn docker(machine: &Machine, arguments: &[&str]) -> Output {
    let output = machine.docker(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output
}

/// What the docker CLI says when it fails.
fn refused(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.docker(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    text(&output.stderr)
}

/// Runs a shell in the container, and returns what it prints.
fn inside(machine: &Machine, name: &str, script: &str) -> String {
    text(&docker(machine, &["exec", name, "sh", "-c", script]).stdout)
}

async fn sleeping(engine: &Engine, name: &str, image: &str, host_config: serde_json::Value) {
    let body = json!({ "Image": image, "Cmd": ["sleep", "1000"], "HostConfig": host_config });
    engine.create(name, body).await;
    engine.start(name).await;
}

#[tokio::test]
async fn files_go_in_and_come_out_of_running_and_stopped_containers() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let host = machine.path("host");
    fs::create_dir_all(host.join("tree/sub")).unwrap();
    fs::write(host.join("tree/sub/file"), "content").unwrap();
    fs::set_permissions(host.join("tree/sub/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("sub/file", host.join("tree/link")).unwrap();
    let data = machine.path("data");
    fs::create_dir_all(&data).unwrap();
    let bind = format!("{}:/data", data.display());
    sleeping(&engine, "c1", &image, json!({ "Binds": [bind], "Tmpfs": { "/mem": "" } })).await;
    let tree = host.join("tree").display().to_string();
    let back = host.join("back");
    for is_running in [true, false] {
        for place in ["/tmp", "/data"] {
            docker(&machine, &["cp", &tree, &format!("c1:{place}/new")]);
            let _ = fs::remove_dir_all(&back);
            docker(&machine, &["cp", &format!("c1:{place}/new"), back.to_str().unwrap()]);
            let file = fs::metadata(back.join("sub/file")).unwrap();
            assert_eq!((file.mode() & 0o7777, file.len()), (0o4711, 7), "{place} {is_running}");
            assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("sub/file"));
            // The link itself, and with -L what it leads to.
            for (options, expected) in [(&[][..], true), (&["-L"], false)] {
                let copied = host.join("copied");
                let _ = fs::remove_file(&copied);
                let from = format!("c1:{place}/new/link");
                let arguments = [&["cp"], options, &[&from, copied.to_str().unwrap()]].concat();
                docker(&machine, &arguments);
                assert_eq!(copied.is_symlink(), expected, "{options:?}");
            }
        }
        if is_running {
            assert_eq!(
                inside(&machine, "c1", "cat /tmp/new/link /data/new/link"),
                "contentcontent"
            );
            docker(&machine, &["cp", &tree, "c1:/mem/new"]);
            assert_eq!(inside(&machine, "c1", "cat /mem/new/link"), "content");
            let hosts = text(&docker(&machine, &["cp", "c1:/etc/hosts", "-"]).stdout);
            assert!(hosts.contains("localhost"), "the container's own one is seen");
            engine.post("/containers/c1/stop?t=0", json!(null)).await;
        }
    }
    assert_eq!(fs::read_to_string(data.join("new/sub/file")).unwrap(), "content");
    // What was copied in while it was stopped is there when it runs.
    fs::write(host.join("late"), "late").unwrap();
    docker(&machine, &["cp", host.join("late").to_str().unwrap(), "c1:/late"]);
    engine.start("c1").await;
    assert_eq!(inside(&machine, "c1", "cat /late"), "late");
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn refusals_are_in_dockerds_words() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let data = machine.path("data");
    fs::create_dir_all(&data).unwrap();
    let binds = [format!("{0}:/ro:ro", data.display()), format!("{0}:/rw", data.display())];
    let config = json!({ "Binds": binds, "ReadonlyRootfs": true });
    sleeping(&engine, "c1", &image, config).await;
    let file = machine.path("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    for is_running in [true, false] {
        for (to, message) in [
            ("c1:/tmp", "container rootfs is marked read-only"),
            ("c1:/ro", "mounted volume is marked read-only"),
            ("c1:/none/x", "Could not find the file /none in container c1"),
        ] {
            let said = refused(&machine, &["cp", file, to]);
            assert!(said.contains(message), "{to} {is_running}: {said}");
        }
        docker(&machine, &["cp", file, "c1:/rw/file"]);
        for (path, status, message) in [
            ("", 400, "bad parameter: pathcannot be empty"),
            ("/none", 404, "Could not find the file /none in container c1"),
            // The kernel's and the machine's are nobody's files.
            ("/proc/1", 404, "Could not find the file /proc/1 in container c1"),
            ("/dev/null", 404, "Could not find the file /dev/null in container c1"),
            ("/etc/passwd/x", 500, "lstat /etc/passwd/x: not a directory"),
        ] {
            let url = format!("/containers/c1/archive?path={path}");
            let answer = engine.request("GET", &url, None).await;
            assert_eq!(answer, (status, json!({ "message": message })), "{path}");
            assert_eq!(engine.request("HEAD", &url, None).await.0, status);
        }
        if is_running {
            engine.post("/containers/c1/stop?t=0", json!(null)).await;
        }
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn owners_are_the_files_or_with_a_the_containers_user() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let body = json!({ "Image": image, "Cmd": ["sleep", "1000"], "User": "12:34" });
    engine.create("c1", body).await;
    engine.start("c1").await;
    let file = machine.path("file");
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::chown(&file, Some(1000), Some(1001)).unwrap();
    let file = file.to_str().unwrap();
    docker(&machine, &["cp", file, "c1:/tmp/plain"]);
    docker(&machine, &["cp", "-a", file, "c1:/tmp/archive"]);
    let owners = inside(&machine, "c1", "stat -c %u:%g /tmp/plain /tmp/archive");
    assert_eq!(owners, "1000:1001\n12:34\n");
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn no_link_and_no_program_of_a_container_reaches_the_host() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    sleeping(&engine, "c1", &image, json!({})).await;
    let secret = machine.path("secret");
    fs::write(&secret, "of the host").unwrap();
    let secret = secret.to_str().unwrap();
    // CVE-2018-15664: a directory becomes a link to the root and back for as long as this runs. With
    // CVE-2019-14271 the container's libraries were loaded by the daemon: these would fail.
    let script = format!(
        "mkdir -p /a$(dirname {secret}) /lib && echo inside > /a{secret} && \
         for lib in nss_files nss_dns; do echo x > /lib/lib$lib.so.2; done && \
         ln -s / /b && touch /ready && \
         while :; do mv /a /c; mv /b /a; mv /a /b; mv /c /a; done"
    );
    docker(&machine, &["exec", "-d", "c1", "sh", "-c", &script]);
    inside(&machine, "c1", "until test -e /ready; do :; done");
    let evil = machine.path("evil");
    fs::write(&evil, "evil").unwrap();
    for _ in 0..20 {
        let read = machine.docker(&["cp", &format!("c1:/a{secret}"), "-"]);
        assert!(!text(&read.stdout).contains("of the host"));
        let _ = machine.docker(&["cp", evil.to_str().unwrap(), &format!("c1:/a{secret}")]);
        assert_eq!(fs::read_to_string(secret).unwrap(), "of the host");
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_export_has_the_image_and_what_was_written_and_no_mounts() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let data = machine.path("data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("secret"), "x").unwrap();
    let config = json!({ "Binds": [format!("{}:/data", data.display())] });
    sleeping(&engine, "c1", &image, config).await;
    inside(&machine, "c1", "echo new > /new; rm /etc/group");
    for is_running in [true, false] {
        let tar = docker(&machine, &["export", "c1"]).stdout;
        let mut list = Command::new("tar")
            .arg("-t")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = list.stdin.take().unwrap();
        let sending = std::thread::spawn(move || stdin.write_all(&tar).unwrap());
        let names = text(&list.wait_with_output().unwrap().stdout);
        sending.join().unwrap();
        let has = |name: &str| names.lines().any(|line| line == name);
        assert!(has("new") && has("bin/sh") && has("etc/passwd"), "{is_running}: {names}");
        assert!(!has("etc/group") && !has("data/secret") && !names.contains("proc/1"), "{names}");
        if is_running {
            engine.post("/containers/c1/stop?t=0", json!(null)).await;
        }
    }
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_and_a_start_waits_for_one_that_stays() {
    let (machine, _daemon, engine, image) = ready().await;
    engine.create("c1", json!({ "Image": image, "Cmd": ["true"] })).await;
    let ask = |path: &str| {
        let mut client = UnixStream::connect(&engine.socket).unwrap();
        write!(client, "GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n").unwrap();
        let mut begun = [0; 64];
        client.read_exact(&mut begun).unwrap();
        client
    };
    // It reads no more, so that its answer does not end; and then it is gone.
    let stays = ask("/containers/c1/export");
    let starting = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.start("c1").await })
    };
    // The start cannot end while the files are mounted.
    assert_eq!(engine.inspect("c1").await["State"]["Status"], "created");
    drop(stays);
    starting.await.unwrap();
    assert_eq!(engine.wait("c1").await, 0);
    // A tar that breaks off.
    let mut client = UnixStream::connect(&engine.socket).unwrap();
    let head = "PUT /containers/c1/archive?path=/ HTTP/1.1\r\nHost: docker\r\nContent-Length: 9999";
    write!(client, "{head}\r\n\r\nhalf of a header").unwrap();
    drop(client);
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    engine.remove("c1").await;
    machine.assert_clean().await;
}

#[tokio::test]
async fn volumes_and_images_are_seen_in_a_stopped_container_too() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, other) = ready().await;
    let layer = busybox().directory("vol", 0o751).file("vol/of-image", b"it").bytes();
    let config = json!({ "Volumes": { "/vol": {}, "/fresh": {} } });
    let image = Image::docker(&[(layer.clone(), layer)], &config);
    let image = daemon.cri().pull_image(&machine, image).await;
    let mounts = json!([
        { "Type": "image", "Source": other, "Target": "/whole" },
        { "Type": "image", "Source": other, "Target": "/vol/part", "ImageOptions": { "Subpath": "etc" } },
    ]);
    let host = json!({ "Mounts": mounts, "ReadonlyRootfs": true });
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", "cat /vol/* /fresh/* 2>/dev/null; echo run > /vol/written"],
        "HostConfig": host,
    });
    engine.create("c1", body).await;
    let file = machine.path("file");
    fs::write(&file, "copied ").unwrap();
    let file = file.to_str().unwrap();
    for has_run in [false, true] {
        docker(&machine, &["cp", "c1:/vol/of-image", machine.path("out").to_str().unwrap()]);
        for (path, expected) in
            [("/whole/etc/passwd", true), ("/vol/part/passwd", true), ("/vol/written", has_run)]
        {
            let read = machine.docker(&["cp", &format!("c1:{path}"), "-"]);
            assert_eq!(read.status.success(), expected, "{path} {}", text(&read.stderr));
        }
        for to in ["c1:/vol/new", "c1:/fresh/new"] {
            docker(&machine, &["cp", file, to]);
        }
        for to in ["c1:/whole/etc/", "c1:/vol/part/"] {
            let said = refused(&machine, &["cp", file, to]);
            assert!(said.contains("mounted volume is marked read-only"), "{to}: {said}");
        }
        engine.start("c1").await;
        assert_eq!(engine.wait("c1").await, 0);
    }
    let logs = text(&docker(&machine, &["logs", "c1"]).stdout);
    assert_eq!(logs, "copied itcopied copied itrun\ncopied ", "what was copied is there");
    engine.remove("c1").await;
    machine.assert_clean().await;
}
