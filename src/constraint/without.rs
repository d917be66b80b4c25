//! In a program without the feature `constraint`.

use std::convert::Infallible;
use std::sync::Arc;

use super::{Refused, Rules};
use crate::error::Result;
use crate::gguf::GgufFile;
use crate::text::{Filter, Tokenizer};

pub struct Constraints(());

#[derive(Debug)]
pub struct Grammar(Infallible);

pub struct Live(Infallible);

impl Constraints {
    pub fn new(_tokenizer: &Tokenizer, _region_bytes: usize) -> Constraints {
        Constraints(())
    }

    pub fn plan_bytes(_file: &GgufFile, _region_bytes: usize) -> Result<usize> {
        Ok(0)
    }

    pub fn compile(&self, _rules: &Rules) -> std::result::Result<Arc<Grammar>, Refused> {
        Err(Refused::Absent("this program was built without the feature `constraint`: ask for the form in the prompt"))
    }
}

impl Grammar {
    pub fn begin(self: &Arc<Self>) -> Live {
        match self.0 {}
    }
}

impl Live {
    pub fn accept(&mut self, _token: u32) -> bool {
        match self.0 {}
    }

    pub fn stuck(&self) -> Option<&'static str> {
        match self.0 {}
    }
}

impl Filter for Live {
    fn allows(&mut self, _token: u32) -> bool {
        match self.0 {}
    }

    fn mask(&mut self) -> Option<&[u32]> {
        match self.0 {}
    }
}
