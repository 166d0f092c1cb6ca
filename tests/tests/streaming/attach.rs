//! Attach: several clients of one process.

use std::{fs, time::Duration};

use berth_tests::{Machine, SpdyClient, container, pod, ready};
use serde_json::Value;

use crate::session::{attach, ending};

#[tokio::test]
async fn several_clients_are_attached_to_one_process() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    let mut config =
        container("c", &image, "while read line; do echo got $line; echo err >&2; done; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let id = cri.run(&sandbox, config).await.unwrap();
    let one = attach(&cri, &id, "ioe").await;
    let two = attach(&cri, &id, "o").await;
    machine.in_network(|| {
        let mut watcher = SpdyClient::open_all(&two, &["error", "stdout"]);
        let mut client = SpdyClient::open_all(&one, &["error", "stdin", "stdout", "stderr"]);
        // Attach does not replay output, and nothing says when a client is attached. So lines are
        // sent until both clients have seen one.
        while !(watcher.text(3).contains("got") && client.text(5).contains("got")) {
            client.send(3, b"hello\n");
            client.read_until(|client| client.text(5).ends_with('\n')).unwrap();
            watcher.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = watcher.read_until(|watcher| watcher.text(3).contains("got hello"));
        }
        watcher.socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // stdin_once: when the first client closes its input, the input of the process ends.
        client.finish(3);
        assert_eq!(ending(&client.read_all(1)), 0);
        assert!(client.text(5).ends_with("end\n") && client.text(7).contains("err"), "{client:?}");
        assert!(watcher.read_all(3).ends_with("end\n"));
        assert_eq!(ending(&watcher.text(1)), 0);
    });
    assert_eq!(cri.exited(&id).await.exit_code, 0);
}

/// Has the container's shim treat it as one of the Docker Engine API, whose clients miss no output.
fn await_attach(machine: &Machine, id: &str) {
    let path = machine.path("root").join("containers").join(id).join("spec.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["stdio"]["awaits_attach"] = true.into();
    spec["stdio"]["lossless"] = true.into();
    fs::write(&path, spec.to_string()).unwrap();
}

#[tokio::test]
async fn a_client_that_is_awaited_gets_everything() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    // The first has more to say than its pipe holds, and more than a client takes at once; the
    // second has ended before its client comes.
    for (name, script, count) in
        [("long", "seq 1 50000; echo end >&2", 50_000), ("short", "echo 1; echo end >&2", 1)]
    {
        let id = cri.create(&sandbox, container(name, &image, script)).await.unwrap();
        await_attach(&machine, &id);
        cri.start(&id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let url = attach(&cri, &id, "oe").await;
        machine.in_network(|| {
            let mut client = SpdyClient::open_all(&url, &["error", "stdout", "stderr"]);
            let output = client.read_all(3);
            let expected: Vec<String> = (1..=count).map(|number: i32| number.to_string()).collect();
            assert!(output.lines().eq(expected.iter().map(String::as_str)), "{}", output.len());
            assert_eq!(client.text(5), "end\n");
            assert_eq!(ending(&client.text(1)), 0);
        });
        assert_eq!(cri.exited(&id).await.exit_code, 0);
    }
}
