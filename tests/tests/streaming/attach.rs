//! Attach: several clients of one process.

use std::time::Duration;

use berth_tests::{SpdyClient, container, pod, ready};

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
