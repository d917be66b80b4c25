//! `--plot FILE.svg`: the file of a picture, checked before the work and written whole at its end. A binary built without
//! the feature `plot` says so at once.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::unfinished::Unfinished;
use crate::error::{Error, Result};

#[derive(clap::Args)]
pub struct PlotArgs {
    /// Draw the result as well
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl PlotArgs {
    /// Bytes of a picture of so many rows, as it is drawn and written.
    pub fn bytes(&self, n_rows: usize) -> usize {
        // The file's buffer, and what a figure of the picture takes as SVG, twice while it grows.
        if self.plot.is_some() { n_rows.saturating_mul(2048).saturating_add(1 << 20) } else { 0 }
    }

    /// Refuses, before hours of work, what could not be written at their end.
    pub fn check(&self) -> Result<()> {
        let Some(path) = &self.plot else { return Ok(()) };
        if cfg!(not(feature = "plot")) {
            let what = "this binary was built without pictures; build it with `cargo build --release --features plot`";
            return Err(Error::usage("--plot", what));
        }
        Unfinished::check("--plot", path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match folder.is_dir() {
            true => Ok(()),
            false => {
                Err(Error::usage("--plot", format!("there is no folder {}; give a file in one that exists", folder.display())))
            }
        }
    }

    /// Writes what `draw` gives, if a picture was asked for.
    pub fn write(&self, draw: impl FnOnce() -> Result<String>) -> Result<()> {
        let Some(path) = &self.plot else { return Ok(()) };
        let svg = draw()?;
        let written =
            Unfinished::create(path).and_then(|mut file| file.out.write_all(svg.as_bytes()).and_then(|()| file.finish()));
        written.map_err(|e| {
            Error::budget("--plot", format!("{}: {e}: give a name in a folder that can be written and has room", path.display()))
        })
    }
}
