//! Linux security modules, which confine a container besides namespaces, capabilities and seccomp.

pub mod apparmor;
pub mod selinux;
