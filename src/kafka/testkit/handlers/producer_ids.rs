//! InitProducerId.

use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::script::Plan;

impl Serve for InitProducerIdRequest {
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<InitProducerIdResponse>, Ended> {
        let response = InitProducerIdResponse::default().with_throttle_time_ms(plan.throttle_ms);
        let mut state = context.lock();
        let injected = plan.error();
        if let Some(error) = injected.filter(|error| !error.is_carried_out) {
            return Ok(Some(
                response.with_error_code(error.code).with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
            ));
        }
        // A producer without transactions gets a new id each time, whatever id it names (`TransactionCoordinator`).
        let transactional_id = self.transactional_id.map(|id| id.to_string());
        let known = transactional_id.as_ref().and_then(|id| state.transactional_ids.get(id).copied());
        let (id, epoch) = match known {
            Some((id, epoch)) if epoch < i16::MAX - 1 => (id, epoch + 1),
            _ => {
                state.next_producer_id += 1;
                (state.next_producer_id - 1, 0)
            }
        };
        if let Some(name) = transactional_id {
            state.transactional_ids.insert(name, (id, epoch));
        }
        let code = injected.map_or(codes::NONE, |error| error.code);
        Ok(Some(response.with_error_code(code).with_producer_id(ProducerId(id)).with_producer_epoch(epoch)))
    }
}
