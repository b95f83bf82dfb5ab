/* Before everything else. The client wants every operation for its pages that the kernel's headers know
 * of; later headers know of some that pages like its own do not have, and it would refuse to open
 * anything. It uses one. */
#include <linux/userfaultfd.h>
#undef UFFD_API_RANGE_IOCTLS
#define UFFD_API_RANGE_IOCTLS ((__u64)1 << _UFFDIO_COPY)
