//! The bodies of `/exec`.

use serde::Deserialize;

use berth_dockerfile::words;

/// `POST /containers/{name}/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ExecBody {
    pub user: String,
    pub privileged: bool,
    pub tty: bool,
    /// Rows and columns.
    pub console_size: Option<[u32; 2]>,
    pub attach_stdin: bool,
    pub attach_stderr: bool,
    pub attach_stdout: bool,
    pub detach_keys: String,
    pub env: Option<Vec<String>>,
    pub working_dir: String,
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
}

/// `POST /exec/{id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ExecStart {
    pub detach: bool,
    pub tty: bool,
    /// Rows and columns.
    pub console_size: Option<[u32; 2]>,
}
