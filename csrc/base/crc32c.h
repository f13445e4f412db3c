/* CRC32C (Castagnoli), the sum of a granule: by the processor's own instruction where it has one. */
#ifndef PE_CRC32C_H
#define PE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c_bytes(const char *bytes, size_t length);
/* The same without the instruction. */
uint32_t crc32c_portably(const char *bytes, size_t length);
/* The sums of the granules that length bytes make up; the last of them may be a short one. */
void crc32c_granules(const char *bytes, size_t length, uint32_t *sums);

#endif
