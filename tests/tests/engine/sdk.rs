//! What docker's SDKs rely on that the CLI does not.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use berth_tests::{Engine, Layer, gzip};
use lzma_rust2::{XzOptions, XzWriter};
use serde_json::{Value, json};

use crate::ready;

/// Sends a request whose answer makes the connection a stream.
fn ask(engine: &Engine, path: &str, body: &str) -> UnixStream {
    let mut connection = UnixStream::connect(&engine.socket).unwrap();
    write!(
        connection,
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    connection
}

/// What one read gives.
fn read(connection: &mut UnixStream) -> String {
    let mut first = vec![0; 8 << 10];
    let length = connection.read(&mut first).unwrap();
    String::from_utf8_lossy(&first[..length]).into_owned()
}

/// Sends such a request, and returns the connection with what comes first.
fn upgrade(engine: &Engine, path: &str, body: &str) -> (UnixStream, String) {
    let mut connection = ask(engine, path, body);
    let head = read(&mut connection);
    (connection, head)
}

fn rest(mut connection: UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    rest
}

/// docker-py reads answers through a buffer, and drops it when it goes on with the socket.
#[tokio::test]
async fn output_of_an_exec_does_not_come_with_the_head_of_the_answer() {
    let (_machine, _daemon, engine, image) = ready().await;
    engine.create("c1", json!({ "Image": image, "Cmd": ["sleep", "1000"] })).await;
    engine.start("c1").await;
    for command in [&["echo", "hi"][..], &["nope"]] {
        for other_requests in [0, 0, 0, 10, 50] {
            let asked = json!({ "Cmd": command, "AttachStdout": true, "AttachStderr": true });
            let exec = engine.post("/containers/c1/exec", asked).await;
            let path = format!("/exec/{}/start", exec["Id"].as_str().unwrap());
            let mut connection = ask(&engine, &path, "{}");
            // A client on a busy machine reads late.
            for _ in 0..other_requests {
                engine.inspect("c1").await;
            }
            let head = read(&mut connection);
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert!(head.ends_with("\r\n\r\n"), "{head}");
            let output = rest(connection);
            match command[0] {
                "echo" => assert_eq!(output, b"\x01\0\0\0\0\0\0\x03hi\n"),
                _ => assert!(String::from_utf8_lossy(&output).contains("not found"), "{output:?}"),
            }
        }
    }
}

/// docker-py's `attach` of a container that is then removed without force.
#[tokio::test]
async fn a_container_has_ended_when_its_attached_output_has() {
    let (_machine, _daemon, engine, image) = ready().await;
    for _ in 0..5 {
        engine.create("c1", json!({ "Image": image, "Cmd": ["echo", "hi"] })).await;
        let path = "/containers/c1/attach?stream=1&stdout=1&stderr=1";
        let (connection, head) = upgrade(&engine, path, "");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        engine.start("c1").await;
        assert_eq!(rest(connection), b"\x01\0\0\0\0\0\0\x03hi\n");
        let (status, answer) = engine.request("DELETE", "/containers/c1", None).await;
        assert_eq!(status, 204, "{answer}");
    }
    // One that goes on without output does not keep its clients.
    let command = ["sh", "-c", "exec >/dev/null 2>&1; sleep 1000"];
    engine.create("c2", json!({ "Image": image, "Cmd": command })).await;
    let (connection, _) = upgrade(&engine, "/containers/c2/attach?stream=1&stdout=1&stderr=1", "");
    engine.start("c2").await;
    assert_eq!(rest(connection), b"");
    let state = engine.inspect("c2").await["State"].clone();
    assert_eq!(state["Running"], true, "{state}");
    // It is called what the client calls it.
    let id = engine.inspect("c2").await["Id"].as_str().unwrap().to_owned();
    let (status, answer) = engine.request("DELETE", &format!("/containers/{id}"), None).await;
    let expected = format!(
        "cannot remove container \"{id}\": container is running: stop the container before \
         removing or force remove"
    );
    assert_eq!((status, &answer["message"]), (409, &Value::String(expected)));
    engine.remove("c2").await;
}

/// Puts a body into `/tmp` of a container, and returns the status with the message.
fn put(engine: &Engine, name: &str, body: &[u8]) -> String {
    let mut connection = UnixStream::connect(&engine.socket).unwrap();
    write!(
        connection,
        "PUT /containers/{name}/archive?path=/tmp HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    connection.write_all(body).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    String::from_utf8_lossy(&rest(connection)).into_owned()
}

#[tokio::test]
async fn archives_that_are_put_may_be_compressed() {
    let (_machine, _daemon, engine, image) = ready().await;
    let script = "cat /tmp/plain /tmp/gzip /tmp/zstd /tmp/bzip2 /tmp/xz";
    engine.create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", script], "Tty": true })).await;
    let tar = |name: &str| Layer::new().file(name, format!("{name} ").as_bytes()).bytes();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar("bzip2")).unwrap();
    // As `xz -9`, which takes most memory.
    let mut xz = XzWriter::new(Vec::new(), XzOptions::with_preset(9)).unwrap();
    xz.write_all(&tar("xz")).unwrap();
    for body in [
        tar("plain"),
        gzip(&tar("gzip")),
        zstd::encode_all(tar("zstd").as_slice(), 0).unwrap(),
        bzip2.finish().unwrap(),
        xz.finish().unwrap(),
    ] {
        let answer = put(&engine, "c1", &body);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    for half in [&b"BZh91AY&SY and so on"[..], b"\xfd7zXZ\0 and so on"] {
        let answer = put(&engine, "c1", half);
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    let answer = put(&engine, "c1", &gzip(&tar("half"))[..40]);
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    let path = "/containers/c1/attach?stream=1&stdout=1";
    let (connection, _) = upgrade(&engine, path, "");
    engine.start("c1").await;
    assert_eq!(rest(connection), b"plain gzip zstd bzip2 xz ");
}

/// As bollard's users write them, with `tar::Header::new_gnu`.
#[tokio::test]
async fn entries_of_a_tar_need_not_say_who_owns_them() {
    let (_machine, _daemon, engine, image) = ready().await;
    let script = "stat -c '%a %u:%g %Y' /tmp/file";
    engine.create("c1", json!({ "Image": image, "Cmd": ["sh", "-c", script], "Tty": true })).await;
    let mut header = tar::Header::new_gnu();
    header.set_path("file").unwrap();
    header.set_size(2);
    header.set_mode(0o744);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, &b"it"[..]).unwrap();
    let answer = put(&engine, "c1", &tar.into_inner().unwrap());
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let path = "/containers/c1/attach?stream=1&stdout=1";
    let (connection, _) = upgrade(&engine, path, "");
    engine.start("c1").await;
    assert_eq!(String::from_utf8_lossy(&rest(connection)), "744 0:0 0\r\n");
}

#[tokio::test]
async fn lists_are_filtered_by_the_ports_that_they_show() {
    let (_machine, _daemon, engine, image) = ready().await;
    let body = json!({
        "Image": image,
        "Cmd": ["sleep", "1000"],
        "NetworkDisabled": false,
        "ExposedPorts": { "80/tcp": {}, "81/udp": {} },
        "HostConfig": { "PortBindings": { "80/tcp": [{ "HostPort": "8080" }] } },
    });
    engine.create("c1", body).await;
    let counts = async |running: bool| {
        for (filter, expected) in [
            (r#"{"publish":["8080"]}"#, true),
            (r#"{"publish":["8000-8100/tcp"]}"#, true),
            (r#"{"publish":["80"]}"#, false),
            (r#"{"publish":["8080/udp"]}"#, false),
            (r#"{"expose":["80"]}"#, true),
            (r#"{"expose":["81/udp"]}"#, true),
            (r#"{"expose":["8080"]}"#, false),
        ] {
            let listed = engine.get(&format!("/containers/json?all=1&filters={filter}")).await;
            let expected = usize::from(expected && running);
            assert_eq!(listed.as_array().unwrap().len(), expected, "{filter}");
        }
    };
    counts(false).await;
    engine.start("c1").await;
    counts(true).await;
    // Go leaves out what is false.
    assert_eq!(engine.inspect("c1").await["Config"].get("NetworkDisabled"), None);
    engine.remove("c1").await;
}

#[tokio::test]
async fn a_working_directory_that_the_image_lacks_is_made_in_a_root_that_is_read_only() {
    let (_machine, _daemon, engine, image) = ready().await;
    let body = json!({
        "Image": image,
        "Cmd": ["sh", "-c", "pwd; touch x"],
        "Tty": true,
        "WorkingDir": "/new/place",
        "HostConfig": { "ReadonlyRootfs": true },
    });
    engine.create("c1", body).await;
    let (connection, _) = upgrade(&engine, "/containers/c1/attach?stream=1&stdout=1", "");
    engine.start("c1").await;
    let output = String::from_utf8_lossy(&rest(connection)).into_owned();
    assert_eq!(output, "/new/place\r\ntouch: x: Read-only file system\r\n");
    assert_eq!(engine.wait("c1").await, 1);
}
