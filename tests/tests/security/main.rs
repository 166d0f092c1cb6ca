//! Attacks from inside a container, and the kernel's means against them: seccomp, AppArmor, SELinux
//! and user namespaces.
#![allow(clippy::unwrap_used, reason = "a test that panics fails")]

mod apparmor;
mod attacks;
mod logs;
mod paths;
mod processes;
#[cfg(target_arch = "x86_64")]
mod seccomp;
mod selinux;
mod userns;
