// The BLAS and LAPACK functions that libmlx.so calls, each passed on to OpenBLAS, whose build on
// PyPI puts `scipy_` before every name. A list too short makes the check program fail to link.
.macro forward name
  .globl \name
  .type \name, @function
\name:
  jmp scipy_\name@PLT
.endm

.text
forward cblas_cgemm
forward cblas_dgemm
forward cblas_sgemm
forward cgeev_
forward cgesdd_
forward cheevd_
forward dgeev_
forward dgeqrf_
forward dgesdd_
forward dgetrf_
forward dgetri_
forward dorgqr_
forward dpotrf_
forward dsyevd_
forward dtrtri_
forward sgeev_
forward sgeqrf_
forward sgesdd_
forward sgetrf_
forward sgetri_
forward sorgqr_
forward spotrf_
forward ssyevd_
forward strtri_

.section .note.GNU-stack, "", @progbits
