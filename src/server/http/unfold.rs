//! Bodies: one that is made a step at a time, and one whose end the connection hears of.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};

use super::wire::State;

type Step<S> = Pin<Box<dyn Future<Output = (S, Option<Bytes>)> + Send>>;

/// A body whose bytes come of a state, one step after the other.
pub struct Unfold<S> {
    step: Option<Step<S>>,
    make: Box<dyn FnMut(S) -> Step<S> + Send>,
}

impl<S: Send + 'static> Unfold<S> {
    pub fn new<F>(state: S, mut next: impl FnMut(S) -> F + Send + 'static) -> Self
    where
        F: Future<Output = (S, Option<Bytes>)> + Send + 'static,
    {
        let mut make: Box<dyn FnMut(S) -> Step<S> + Send> = Box::new(move |state| -> Step<S> { Box::pin(next(state)) });
        Unfold { step: Some(make(state)), make }
    }
}

impl<S: 'static> HttpBody for Unfold<S> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(step) = &mut this.step else { return Poll::Ready(None) };
        match step.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((state, Some(bytes))) => {
                this.step = Some((this.make)(state));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready((_, None)) => {
                this.step = None;
                Poll::Ready(None)
            }
        }
    }
}

/// A body whose end the connection hears of.
pub struct Tracked {
    body: Body,
    state: Arc<State>,
}

impl Tracked {
    pub fn new(body: Body, state: Arc<State>) -> Self {
        Tracked { body, state }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.state.answer_has_gone();
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
