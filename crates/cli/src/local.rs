//! The local engine: from `[backend]` with `kind = "local"` to a loaded model.

use std::sync::Arc;

use vgen_core::{Backend, Fault};

use crate::messages::Messages;
use crate::table::{Images, LocalTable};

/// Loads the model.
pub(crate) fn open(table: &LocalTable, _images: &Images, _messages: &Messages) -> Result<Arc<dyn Backend>, Fault> {
    let Some(model) = &table.model else {
        return Err(Fault::stop("usage.model", "no model is named")
            .with_hint("name a folder or a repository with --model, or try --demo"));
    };
    Err(Fault::stop("model.no_engine", format!("model {model} can't run: this build has no local engine")))
}
