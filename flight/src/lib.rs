#![recursion_limit = "256"]
#![doc = include_str!("../README.md")]

mod actions;
mod auth;
mod catalog;
mod decode;
mod encode;
mod error;
mod messages;
mod metrics;
mod options;
mod plan;
mod poll;
mod put;
mod request;
mod results;
mod server;
mod service;
mod sessions;
mod sql_info;
mod status;
#[cfg(test)]
mod tests;
mod throttle;
mod ticket;

pub use auth::{Authenticator, Refusal, TrustEveryone};
pub use error::{Error, Result};
pub use metrics::{Calls, Metrics};
pub use options::{Address, FlightOptions, Limits, TlsOptions};
pub use server::{Server, serve};
pub use service::Service;
pub use status::code_of;
pub use throttle::Throttle;
