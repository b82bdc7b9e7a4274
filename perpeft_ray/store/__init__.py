"""Files of studies: trials' rows and their schema, a study's folder, weights, and the lease."""
