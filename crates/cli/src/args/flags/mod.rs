//! The flags that several commands share, and which setting each of them is.

mod images;
mod messages;
mod model;
mod process;
mod rows;
mod sampling;
mod speed;
mod task;

use clap::Args;

pub(crate) use self::images::ImageFlags;
pub(crate) use self::messages::{Color, LogFormat, MessageFlags};
pub(crate) use self::model::ModelFlags;
pub(crate) use self::process::RunFlags;
pub(crate) use self::rows::RowFlags;
pub(crate) use self::sampling::SamplingFlags;
pub(crate) use self::speed::SpeedFlags;
pub(crate) use self::task::TaskFlags;
use crate::settings::Settings;

/// The flags of every run.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) rows: RowFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
    #[command(flatten)]
    pub(crate) images: ImageFlags,
    #[command(flatten)]
    pub(crate) run: RunFlags,
    /// Print the configuration that holds, with the origin of each value, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
}

impl Flags {
    /// What was given, as settings.
    pub(crate) fn settings(self) -> Settings {
        let mut settings = Settings::default();
        self.rows.add_to(&mut settings);
        self.task.add_to(&mut settings);
        self.sampling.add_to(&mut settings);
        self.images.add_to(&mut settings);
        self.run.add_to(&mut settings);
        settings
    }
}

fn given(flag: bool) -> Option<bool> {
    flag.then_some(true)
}
