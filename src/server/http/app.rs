//! All that a request may need.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::clerk::Clerk;
use super::error::{Checked, Refusal};
use super::ring::Ring;
use super::seats::{Seats, TurnedAway};
use super::{Settings, Shared};

/// Who may watch an arena at once.
const N_WATCHERS: usize = 2;

pub struct App {
    pub settings: Settings,
    pub shared: Arc<Shared>,
    pub clerk: Clerk,
    pub seats: Arc<Seats>,
    pub turned_away: TurnedAway,
    /// Places for bodies of size.
    pub bodies: Arc<Semaphore>,
    pub watchers: Arc<Semaphore>,
    /// Calls of tools that answers held.
    pub ring: Ring,
}

pub type AppState = axum::extract::State<Arc<App>>;

impl App {
    pub fn new(settings: Settings, shared: Arc<Shared>) -> std::io::Result<Arc<App>> {
        Ok(Arc::new(App {
            seats: Seats::new(settings.n_connections),
            turned_away: TurnedAway::new(),
            bodies: Arc::new(Semaphore::new(settings.n_streams + settings.n_queue)),
            watchers: Arc::new(Semaphore::new(N_WATCHERS)),
            ring: Ring::default(),
            clerk: {
                let shared = shared.clone();
                Clerk::start(move || shared.is_warm())?
            },
            settings,
            shared,
        }))
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Checked<Vec<u32>> {
        let ids = self.shared.tokenizer.encode(text, parse_special, add_special);
        ids.map_err(|error| Refusal::bad("invalid_value", format!("the text cannot be split into tokens: {error}")))
    }
}
