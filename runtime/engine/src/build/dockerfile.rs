//! A Dockerfile, stage by stage and step by step.

use std::sync::Arc;

use berth_base::blocking::blocking;
use berth_dockerfile::{
    Config, Dockerfile, Instruction, Line, MetaArgs, Pair, Stage as Part, Step, expand, trigger,
};
use berth_image::Image;

use super::{
    builder::Builder,
    context::Context,
    failure::{BuildFailure, Result},
    output::Output,
    stage::{Named, Stage},
    step,
};
use crate::{
    container::{merge::of_image, platform::Platform},
    http::error::Failure,
};

/// The name of no image.
const SCRATCH: &str = "scratch";

impl Builder {
    /// Builds all stages up to the one that is asked for, and returns its image.
    ///
    /// # Errors
    /// The first step that fails.
    pub(crate) async fn build(mut self, context: Context) -> Result<Arc<Image>> {
        let Context { tree, mut dockerfile } = context;
        self.context = tree;
        self.escape = dockerfile.escape;
        cut(&mut dockerfile.stages, &self.options.target)?;
        self.add_labels(&mut dockerfile.stages);
        for warning in &dockerfile.warnings {
            self.output.error_text(format!("{warning}\n")).await;
        }
        let Dockerfile { meta_args, stages, .. } = dockerfile;
        let mut counter = Counter::of(&meta_args, &stages);
        for arguments in meta_args {
            counter.announce(&arguments.line.text, &self.output).await;
            self.declare(&arguments)?;
        }
        let mut last = None;
        for part in stages {
            self.stages.check_name(part.name.as_deref())?;
            let stage = self.stage(&part, &mut counter).await?;
            if let Some(image) = &stage.image {
                self.output.image(image.id.as_str()).await;
            }
            self.arguments.end_stage(&stage.state.arguments);
            self.stages.add(part.name, stage.image.clone());
            last = stage.image;
        }
        if let Some(unused) = self.arguments.unused() {
            self.output.text(unused).await;
        }
        last.ok_or_else(|| BuildFailure::new("No image was generated. Is your Dockerfile empty?"))
    }

    /// `ARG` before the first `FROM`.
    fn declare(&mut self, arguments: &MetaArgs) -> Result<()> {
        let variables = self.arguments.for_meta_args();
        let instruction = Instruction::Arg(arguments.arguments.clone());
        if let Instruction::Arg(expanded) = instruction.expanded(self.escape, &variables)? {
            for argument in expanded {
                self.arguments.add_meta(&argument.key, argument.value.as_deref());
            }
        }
        Ok(())
    }

    /// Those of `--label`, as the last steps.
    fn add_labels(&self, stages: &mut [Part]) {
        let Some(last) = stages.last_mut() else { return };
        for (key, value) in &self.options.labels {
            let line = Line { text: format!("LABEL {key}={value}"), ..Line::default() };
            let pairs = vec![Pair { key: key.clone(), value: value.clone() }];
            let instruction = Instruction::Label { pairs, is_expanded: false };
            last.steps.push(Step { line, instruction });
        }
    }

    async fn stage(&self, part: &Part, counter: &mut Counter) -> Result<Stage> {
        counter.announce(&part.line.text, &self.output).await;
        let (image, config) = self.base(part).await?;
        let mut stage = Stage::begin(image, config, self.arguments.begin_stage());
        let triggers = stage.state.take_triggers();
        self.triggers(&mut stage, &triggers).await?;
        self.output.text(format!(" ---> {}\n", stage.short())).await;
        for step in &part.steps {
            counter.announce(&step.line.text, &self.output).await;
            self.step(&mut stage, &step.instruction).await?;
            self.output.text(format!(" ---> {}\n", stage.short())).await;
        }
        Ok(stage)
    }

    /// The image that a stage begins with; none for `scratch`.
    async fn base(&self, part: &Part) -> Result<(Option<Arc<Image>>, Config)> {
        let variables = self.arguments.for_from();
        let platform = match &part.platform {
            Some(text) => Platform::parse(&expand(text, self.escape, &variables)?)?,
            None => self.options.platform.clone(),
        };
        let name = expand(&part.from, self.escape, &variables)?;
        if name.is_empty() {
            let text = format!("base name ({}) should not be blank", part.from);
            return Err(BuildFailure::new(text));
        }
        let image = match self.stages.by_name(&name) {
            Named::Stage(image) => image,
            Named::Other if name == SCRATCH => None,
            Named::Other => Some(self.image(&name, platform.as_ref()).await?),
        };
        let config = match &image {
            Some(image) => {
                let images = &self.engine.node.host.images;
                of_image(&blocking(|| images.config_document(image))?)
            }
            None => Config::default(),
        };
        Ok((image, config))
    }

    /// The instructions that an image has for those who build upon it.
    async fn triggers(&self, stage: &mut Stage, triggers: &[String]) -> Result<()> {
        if triggers.is_empty() {
            return Ok(());
        }
        let plural = if triggers.len() > 1 { "s" } else { "" };
        let text = format!("# Executing {} build trigger{plural}\n", triggers.len());
        self.output.text(text).await;
        for text in triggers {
            self.step(stage, &trigger(text)?.instruction).await?;
        }
        Ok(())
    }

    /// Does a step, and removes its container.
    async fn step(&self, stage: &mut Stage, instruction: &Instruction) -> Result<()> {
        let done = step::step(self, stage, instruction).await;
        match (&done, self.options.removes, self.options.removes_always) {
            (_, _, true) | (Ok(()), true, false) => {
                self.containers.remove(&self.engine, &self.output).await;
            }
            // Its user wants to look into it.
            _ => self.containers.hand_over(),
        }
        done
    }
}

/// Leaves out the stages after the one that is asked for by its name.
fn cut(stages: &mut Vec<Part>, target: &str) -> Result<()> {
    if target.is_empty() {
        return Ok(());
    }
    let name = target.to_lowercase();
    let Some(last) = stages.iter().position(|stage| stage.name.as_ref() == Some(&name)) else {
        let text = format!("target stage \"{target}\" could not be found");
        return Err(Failure::bad_request(text).into());
    };
    stages.truncate(last + 1);
    Ok(())
}

/// Counts the steps.
#[derive(Debug)]
struct Counter {
    next: usize,
    total: usize,
}

impl Counter {
    fn of(meta_args: &[MetaArgs], stages: &[Part]) -> Self {
        let steps: usize = stages.iter().map(|stage| stage.steps.len() + 1).sum();
        Self { next: 1, total: meta_args.len() + steps }
    }

    async fn announce(&mut self, text: &str, output: &Output) {
        output.text(format!("Step {}/{} : {text}", self.next, self.total)).await;
        output.text("\n").await;
        self.next += 1;
    }
}
