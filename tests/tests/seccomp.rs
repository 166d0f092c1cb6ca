//! Seccomp, where a whole program is needed to see it.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

use berth_proto::v1::{self, security_profile::ProfileType};
use berth_tests::{Entry, Image, Layer, container, gzip, in_guest, pod, ready};
use serde_json::json;

/// An i386 executable by hand: `exit(kill(0, 0) + 42)`, by the 32-bit table of system calls.
fn i386_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let code: &[u8] = &[
        0x31, 0xdb, // xor ebx, ebx
        0x31, 0xc9, // xor ecx, ecx
        0xb8, 37, 0, 0, 0, // mov eax, 37 (kill)
        0xcd, 0x80, // int 0x80
        0x8d, 0x58, 42, // lea ebx, [eax + 42]
        0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
        0xcd, 0x80, // int 0x80
    ];
    let (header, size) = (52_u32, 84 + code.len() as u32);
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC for EM_386, version 1; one program header behind this one, and no sections.
    elf.extend([2_u16, 3].into_iter().flat_map(u16::to_le_bytes));
    elf.extend([1, BASE + 84, header, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    elf.extend([52_u16, 32, 1, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    // PT_LOAD of all of it, to be read and executed.
    elf.extend([1, 0, BASE, BASE, size, size, 5, 0x1000].into_iter().flat_map(u32::to_le_bytes));
    elf.extend(code);
    elf
}

#[tokio::test]
async fn programs_of_32_bits_run_under_the_default_profile() {
    let (machine, _daemon, cri, _) = ready().await;
    let program = i386_program();
    let layer =
        Layer::new().entry(&Entry { name: "program", mode: 0o755, content: &program, ..Entry::default() }).bytes();
    let name = cri.pull_image(&machine, Image::new(&[(layer.clone(), gzip(&layer))], &json!({}))).await;
    let sandbox = cri.run_pod(pod(&machine, "p")).await.unwrap();
    for profile in [ProfileType::Unconfined, ProfileType::RuntimeDefault] {
        let mut config = container(&format!("{profile:?}"), &name, "");
        config.command = vec!["/program".into()];
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.seccomp = Some(v1::SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() });
        let started = cri.run(&sandbox, config).await;
        if in_guest() {
            // User-Mode Linux has no 32-bit table of system calls, and knows it.
            assert!(started.unwrap_err().message().contains("Exec format error"));
            continue;
        }
        assert_eq!(cri.exited(&started.unwrap()).await.exit_code, 42, "{profile:?}");
    }
    cri.remove_pod(&sandbox).await.unwrap();
    machine.assert_clean().await;
}
