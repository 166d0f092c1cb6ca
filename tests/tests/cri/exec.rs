//! ExecSync: output, exit code and deadline.

use berth_tests::{container, eventually, pod, ready};
use tonic::Code;

#[tokio::test]
async fn exec_gives_output_code_and_a_deadline() {
    let (machine, _daemon, cri, image) = ready().await;
    let sandbox = cri.run_pod(pod(&machine, "exec")).await.unwrap();
    let id = cri.run(&sandbox, container("c", &image, "exec sleep 1000")).await.unwrap();
    let output = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"], 0).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    for _ in 0..50 {
        assert_eq!(cri.exec(&id, &["echo", "tail"], 0).await.unwrap().stdout, b"tail\n");
    }
    assert_eq!(cri.exec(&id, &["sh", "-c", "kill -9 $$"], 0).await.unwrap().exit_code, 137);
    // A child that keeps the pipes open is not waited for: the exec ends with its first process.
    let begun = std::time::Instant::now();
    assert_eq!(
        cri.exec(&id, &["sh", "-c", "setsid sleep 600 & echo started"], 0).await.unwrap().stdout,
        b"started\n"
    );
    assert!(begun.elapsed().as_secs() < 10);
    let late = cri.exec(&id, &["sh", "-c", "sleep 4242 & sleep 4242"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    eventually("the end of what ran out of time", async || {
        !cri.sh(&id, "ps -o args").await.contains("4242")
    })
    .await;
    // The output is cut where a gRPC message is full, and the program is not blocked by what is cut
    // off.
    let much =
        cri.exec(&id, &["sh", "-c", "yes | head -c 20000000; echo done >&2"], 0).await.unwrap();
    assert_eq!((much.stdout.len() >> 20, much.stderr.as_slice()), (15, &b"done\n"[..]));
    for command in [&["/no/such/program"][..], &["/etc/passwd"], &[""], &[]] {
        assert_eq!(
            cri.exec(&id, command, 0).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{command:?}"
        );
    }
    cri.stop(&id, 0).await.unwrap();
    assert_eq!(cri.exec(&id, &["true"], 0).await.unwrap_err().code(), Code::FailedPrecondition);
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
