//! Light, steady traffic: enough to see a proxy at work, too little to measure one.

mod http;
mod mqtt;

pub use self::{
    http::{HttpCounts, HttpTally, HttpTraffic},
    mqtt::{MqttCounts, MqttTraffic},
};
