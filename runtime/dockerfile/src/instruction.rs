//! A parsed Dockerfile. Variables in it are still to be expanded.

use crate::config::HealthConfig;

/// A whole file. It has at least one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// `ARG` before the first `FROM`; only `FROM` sees them, and an `ARG` of a stage that names one
    /// without a value.
    pub meta_args: Vec<MetaArgs>,
    pub stages: Vec<Stage>,
    /// What dockerd prints on the build's standard error before the first step, line by line.
    pub warnings: Vec<String>,
}

/// One `ARG` line before the first `FROM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaArgs {
    pub line: Line,
    pub arguments: Vec<Argument>,
}

/// `FROM` and what follows it up to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The line with `FROM`.
    pub line: Line,
    /// An image, `scratch`, or the name of a stage above.
    pub from: String,
    /// In lower case; `None` without `AS`.
    pub name: Option<String>,
    /// The value of `--platform`, `None` without it.
    pub platform: Option<String>,
    pub steps: Vec<Step>,
}

/// An instruction and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub line: Line,
    pub instruction: Instruction,
}

/// Where an instruction stands, and its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The first line, from 1.
    pub first: usize,
    /// The last line, heredocs included.
    pub last: usize,
    /// As dockerd prints it after `Step 1/2 : `: continued lines are one, comments and heredocs are
    /// left out.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Add(Add),
    Arg(Vec<Argument>),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    /// Ports and ranges as written, sorted as text. One variable may hold several.
    Expose(Vec<String>),
    Healthcheck(HealthConfig),
    Label {
        pairs: Vec<Pair>,
        /// False for those of `docker build --label`, which are taken as they are.
        is_expanded: bool,
    },
    Maintainer(String),
    /// The instruction that builds upon this image run first.
    OnBuild(String),
    Run(Run),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `NAME=VALUE` of `ENV` and `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
}

/// `NAME` or `NAME=DEFAULT` of `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    pub key: String,
    pub value: Option<String>,
}

/// The command of `CMD`, `ENTRYPOINT` and `RUN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A JSON list: the program and its arguments.
    Exec(Vec<String>),
    /// Text for the shell. `None` if nothing follows the instruction.
    Shell(Option<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: CommandLine,
    /// Those that the command line names, in order.
    pub heredocs: Vec<Heredoc>,
    /// The names of the flags, without `--`. All of them are BuildKit's, see `refuse_flags`.
    pub flags: Vec<String>,
}

/// Text that stands in the Dockerfile itself, after a line with `<<NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// As it stands; `<<-` has not taken the tabs off yet, see `text`.
    pub content: String,
    /// Whether variables are expanded: the name was not quoted.
    pub is_expanded: bool,
    /// `<<-`: tabs at the start of each line do not count.
    pub is_chomped: bool,
    pub descriptor: u32,
}

/// What is copied, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Paths, patterns of paths or, for `ADD`, URLs.
    pub paths: Vec<String>,
    /// Files that stand in the Dockerfile itself.
    pub contents: Vec<Heredoc>,
    pub destination: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    pub sources: Sources,
    /// Empty without the flag.
    pub chown: String,
    /// Empty without the flag. The classic builder refuses it.
    pub chmod: String,
    /// `sha256:...`; empty without the flag. The classic builder does not look at it.
    pub checksum: String,
    pub is_link: bool,
    pub excludes: Vec<String>,
    pub keep_git_dir: Option<bool>,
    pub unpack: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    pub sources: Sources,
    /// A stage by name or number, or an image. Empty for the context. Never expanded.
    pub from: String,
    /// Empty without the flag.
    pub chown: String,
    /// Empty without the flag. The classic builder refuses it.
    pub chmod: String,
    pub is_link: bool,
    pub excludes: Vec<String>,
}
