//! ApiVersions.

use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};

use super::super::call::{Context, Ended, Serve};
use super::super::codes;
use super::super::release::Release;
use super::super::script::Plan;
use super::super::state::State;

impl Serve for ApiVersionsRequest {
    fn serve(self, context: &mut Context, plan: &Plan) -> Result<Option<ApiVersionsResponse>, Ended> {
        let state = context.lock();
        let code = plan.error().map_or(codes::NONE, |error| error.code);
        Ok(Some(supported(&state).with_error_code(code).with_throttle_time_ms(plan.throttle_ms)))
    }
}

/// Returns the response in version 0 to a version that the release does not have.
pub(in super::super) fn unsupported(state: &State) -> ApiVersionsResponse {
    supported(state).with_error_code(codes::UNSUPPORTED_VERSION)
}

fn supported(state: &State) -> ApiVersionsResponse {
    let apis = Release::apis().filter_map(|api| {
        let (low, high) = state.release.versions(api)?;
        Some(ApiVersion::default().with_api_key(api as i16).with_min_version(low).with_max_version(high))
    });
    ApiVersionsResponse::default().with_api_keys(apis.collect())
}
