//! Which parts of an instruction have variables.

use crate::{
    error::Result,
    expand::{Rules, expand, expand_words},
    instruction::{Add, Argument, Copy, Heredoc, Instruction, Pair, Sources},
    variables::Variables,
};

impl Instruction {
    /// The instruction with its variables expanded. Commands are left to the shell that runs them.
    ///
    /// # Errors
    /// In dockerd's words, for what is no valid substitution.
    pub fn expanded(&self, escape: char, variables: &Variables) -> Result<Self> {
        let one = |text: &String| expand(text, escape, variables);
        let pairs = |pairs: &[Pair]| {
            let pair = |p: &Pair| Ok(Pair { key: one(&p.key)?, value: one(&p.value)? });
            pairs.iter().map(pair).collect::<Result<Vec<Pair>>>()
        };
        Ok(match self {
            Self::Env(env) => Self::Env(pairs(env)?),
            Self::Label { pairs: labels, is_expanded: true } => {
                Self::Label { pairs: pairs(labels)?, is_expanded: true }
            }
            Self::Arg(arguments) => {
                let argument = |argument: &Argument| {
                    let value = argument.value.as_ref().map(one).transpose()?;
                    Ok(Argument { key: one(&argument.key)?, value })
                };
                Self::Arg(arguments.iter().map(argument).collect::<Result<_>>()?)
            }
            Self::Add(add) => Self::Add(Add {
                chown: one(&add.chown)?,
                chmod: one(&add.chmod)?,
                checksum: one(&add.checksum)?,
                sources: sources(&add.sources, escape, variables)?,
                ..add.clone()
            }),
            Self::Copy(copy) => Self::Copy(Copy {
                chown: one(&copy.chown)?,
                chmod: one(&copy.chmod)?,
                sources: sources(&copy.sources, escape, variables)?,
                ..copy.clone()
            }),
            Self::Expose(ports) => {
                let words = |port: &String| expand_words(port, Rules::new(escape), variables);
                Self::Expose(ports.iter().map(words).collect::<Result<Vec<_>>>()?.concat())
            }
            Self::Volume(volumes) => Self::Volume(volumes.iter().map(one).collect::<Result<_>>()?),
            Self::StopSignal(signal) => Self::StopSignal(one(signal)?),
            Self::User(user) => Self::User(one(user)?),
            Self::Workdir(path) => Self::Workdir(one(path)?),
            other => other.clone(),
        })
    }
}

fn sources(sources: &Sources, escape: char, variables: &Variables) -> Result<Sources> {
    let path = |path: &String| expand(path, escape, variables);
    let content = |heredoc: &Heredoc| heredoc.expanded(escape, variables);
    Ok(Sources {
        paths: sources.paths.iter().map(path).collect::<Result<_>>()?,
        contents: sources.contents.iter().map(content).collect::<Result<_>>()?,
        destination: path(&sources.destination)?,
    })
}
