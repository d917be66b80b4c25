//! The transformer: what a file must hold to be one (`arch`, `keys`, `reading`, `config`, `weights`, `binding`), the same weights laid out for
//! some CPUs in a file beside it (`pack`), the room it computes in (`scratch`), what a stream remembers beside keys and values
//! (`state`), which kernels do what (`choice`), and the pass itself (`forward`, in parts `mixers`, with the recurrences in `shortconv`,
//! `delta` and `mamba`, the FFN in `ffn`, and what a second table of embeddings feeds to each layer in `inputs`).

pub mod arch;
mod binding;
pub mod choice;
pub mod config;
mod delta;
mod ffn;
pub mod forward;
pub mod guard;
mod inputs;
mod keys;
mod mamba;
mod mixers;
mod norms;
pub mod pack;
mod reading;
pub mod rope;
pub mod scratch;
mod shortconv;
pub mod state;
pub mod weights;

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::{Message, Result};
use crate::gguf::GgufFile;
use crate::kernels::Kernels;
use crate::mem::pool::Pool;

use choice::{Choice, Room, choose};
use config::Config;
use guard::Guard;
use pack::Pack;
use rope::Ropes;
use scratch::Scratch;
use weights::{Files, Weights};

/// A model that is open and bound, with its pack if it has one.
pub struct Model {
    pub file: GgufFile,
    /// The pack beside the file, if there is one that is the model's.
    pub pack: Option<Pack>,
    /// Why one that is there is not used.
    pub unused_pack: Option<Message>,
    pub config: Config,
    pub weights: Weights,
    pub ropes: Ropes,
}

impl Model {
    pub fn load(file: GgufFile) -> Result<Model> {
        let mut model = Self::load_without_pack(file)?;
        match Pack::beside(&model.file) {
            Some(Ok(pack)) => model.pack = Some(pack),
            Some(Err(why)) => model.unused_pack = Some(why),
            None => {}
        }
        Ok(model)
    }

    pub fn load_without_pack(file: GgufFile) -> Result<Model> {
        let config = Config::from_gguf(&file)?;
        let weights = Weights::bind(&file, &config)?;
        let ropes = Ropes::new(&config, weights.rope_freqs.as_deref());
        Ok(Model { file, pack: None, unused_pack: None, config, weights, ropes })
    }

    /// What these kernels read weights from.
    pub fn files(&self, kernels: Kernels) -> Files<'_> {
        Files { model: &self.file, pack: self.pack.as_ref().filter(|_| kernels.reads_packed()) }
    }
}

/// The machine that a pass runs on.
pub struct Machine {
    pub kernels: Kernels,
    pub pool: Pool,
    pub scratch: Scratch,
    /// Watches for what is not a number.
    pub guard: Guard,
}

impl Machine {
    /// Leaves each operation to the set of kernels that is fastest at it here, unless a set was asked for by name.
    pub fn choose_kernels(&mut self, model: &Model) -> Choice {
        let started = Instant::now();
        self.choose_kernels_by(model, &mut || started.elapsed())
    }

    /// By another clock.
    pub fn choose_kernels_by(&mut self, model: &Model, clock: &mut dyn FnMut() -> Duration) -> Choice {
        let Scratch { x, mixed, gate, acts, logits, tiles, attend, beside, .. } = &mut self.scratch;
        let n_batch = x.len() / model.config.n_embd;
        let x = [&*x, &*mixed, &*beside, &*gate].into_iter().max_by_key(|x| x.len()).expect("four");
        // Several rows of logits at once are asked for of streams together, of guesses, and by instruments.
        let has_few = logits.len() > model.config.n_vocab;
        let room = &mut Room { pool: &mut self.pool, tiles, acts, n_batch, x, out: logits, attend: Some(attend), has_few };
        let (kernels, choice) = choose(self.kernels, &model.weights, &model.files(self.kernels), room, clock);
        self.set_kernels(kernels);
        choice
    }

    /// What the layers are fed for the tokens of some rows, whose embeddings are there, from a model's second table, if it has one.
    fn set_inputs(&mut self, model: &Model, tokens: &[u32], rows: Range<usize>) -> Result<()> {
        let Machine { kernels, pool, scratch, guard } = self;
        let Scratch { x, tiles, acts, inputs, .. } = scratch;
        let (Some(inputs), Some(table)) = (inputs, &model.weights.second_table) else { return Ok(()) };
        let (c, first) = (&model.config, rows.start);
        let x = &x[rows.start * c.n_embd..rows.end * c.n_embd];
        inputs.set(table, (*kernels, &model.files(*kernels)), (pool, tiles, acts), (tokens, x), (first, c.rms_eps))?;
        guard.always(inputs.rows(rows));
        Ok(())
    }

    pub fn set_kernels(&mut self, kernels: Kernels) {
        self.kernels = kernels;
        self.scratch.attend.set_kernels(kernels);
    }
}
